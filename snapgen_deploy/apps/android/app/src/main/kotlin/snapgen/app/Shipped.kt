package snapgen.app

import java.io.File
import snapgen.core.Engine

/** What this app was written for. */
object Shipped {
    const val TARGET = "@TARGET@"

    /** SHA-256 of the bundle's manifest.json, which has those of all other files. */
    const val MANIFEST_SHA256 = "@SHA256@"

    fun engine(folder: File, threads: Int): Engine = @ENGINE@(folder, threads)
}
