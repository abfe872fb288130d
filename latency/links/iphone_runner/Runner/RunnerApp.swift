// The app that the tests run in: tests without an app do not run on a phone. It draws nothing and keeps the screen on.

import SwiftUI
import UIKit

@main
struct RunnerApp: App {
    var body: some Scene {
        WindowGroup {
            Text("Measuring: leave the phone alone").onAppear { UIApplication.shared.isIdleTimerDisabled = true }
        }
    }
}
