plugins {
    alias(libs.plugins.android.application)
    alias(libs.plugins.kotlin.android)
    alias(libs.plugins.kotlin.compose)
}

android {
    namespace = "snapgen.app"
    compileSdk = 36
    assetPacks += ":model"

    defaultConfig {
        applicationId = "com.example.snapgen" // yours
        minSdk = 26
        targetSdk = 36
        versionCode = 1
        versionName = "1.0"
        ndk { abiFilters += listOf("arm64-v8a", "x86_64") } // the runtime's; x86_64 is the emulator's
        buildConfigField("String", "RUNTIME_VERSION", "\"${libs.versions.@RUNTIME@.get()}\"")
    }
    buildTypes {
        debug {
            // An .apk has no asset packs: without a store the files come with the app.
            sourceSets["debug"].assets.srcDir(rootDir.resolve("model/src/main/assets"))
        }
        release {
            isMinifyEnabled = true
            proguardFiles(getDefaultProguardFile("proguard-android-optimize.txt"), "proguard-rules.pro")
        }
    }
    buildFeatures {
        buildConfig = true
        compose = true
    }
    compileOptions {
        sourceCompatibility = JavaVersion.VERSION_17
        targetCompatibility = JavaVersion.VERSION_17
    }
    androidResources { noCompress += listOf("onnx", "pte", "safetensors") }
}

kotlin { jvmToolchain(17) }

dependencies {
    implementation(project(":core"))
    implementation(libs.@RUNTIME@)
    implementation(libs.coroutines.android)
    implementation(platform(libs.compose.bom))
    implementation(libs.compose.material3)
    implementation(libs.compose.ui)
    implementation(libs.activity.compose)
    implementation(libs.lifecycle.viewmodel)
    implementation(libs.lifecycle.runtime)
}
