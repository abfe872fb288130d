import Foundation

/// An error that an app shows as it is: what is wrong, and what to do.
public struct Refused: LocalizedError, Equatable, Sendable {
    /// Why something was refused. Its raw value is what conformance.json and a record call it.
    public enum Reason: String, CaseIterable, Sendable {
        /// The prompt has words that the model does not know.
        case unknown
        /// The prompt has more tokens than the model reads.
        case long
        /// The prompt is empty.
        case empty
        /// The user took it back.
        case cancelled
        /// The bundle lacks something, or has a format that this release does not read.
        case bundle
        /// A file is not the exported one.
        case hash
        /// The tokenizer is of a kind that this release does not read.
        case tokenizer
        /// The runtime cannot load or run a component on this device.
        case runtime
        /// The model returned values that are not finite.
        case finite
    }

    public let reason: Reason
    /// What is wrong, in a sentence.
    public let said: String
    /// What to do about it, in a sentence.
    public let remedy: String

    public init(_ reason: Reason, _ said: String, remedy: String) {
        self.reason = reason
        self.said = said
        self.remedy = remedy
    }

    public var errorDescription: String? { said }
    public var recoverySuggestion: String? { remedy }
}

let exportAgain = "Export the bundle again, and build the app with it."
let installAgain = "Install the app again."
