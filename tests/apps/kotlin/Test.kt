// Stands in for JUnit's annotation, which Gradle brings: the tests of the app's core are compiled and run without it here.

package kotlin.test

annotation class Test
