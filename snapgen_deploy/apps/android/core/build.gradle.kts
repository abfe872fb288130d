// Everything but Android and the runtime: no import of either, so that any JVM builds and tests it.
plugins {
    alias(libs.plugins.kotlin.jvm)
}

kotlin {
    jvmToolchain(17)
    compilerOptions { allWarningsAsErrors.set(true) }
}

dependencies {
    testImplementation(kotlin("test"))
    testImplementation(libs.junit.jupiter)
    testRuntimeOnly(libs.junit.launcher)
}

tasks.test {
    useJUnitPlatform()
    systemProperty("bundle", rootDir.resolve("model/src/main/assets/bundle").path)
    systemProperty("target", "@TARGET@")
}
