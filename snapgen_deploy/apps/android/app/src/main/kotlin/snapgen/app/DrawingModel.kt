package snapgen.app

import android.app.Application
import android.content.ComponentCallbacks2
import android.graphics.Bitmap
import androidx.compose.runtime.getValue
import androidx.compose.runtime.mutableStateOf
import androidx.compose.runtime.setValue
import androidx.lifecycle.AndroidViewModel
import androidx.lifecycle.viewModelScope
import kotlinx.coroutines.CancellationException
import kotlinx.coroutines.Job
import kotlinx.coroutines.launch
import snapgen.core.Reason
import snapgen.core.Refused
import snapgen.core.Request
import snapgen.core.Stage
import snapgen.core.Watcher

/** The application: it holds the model for all screens. */
class DrawingApp : Application() {
    val drawer by lazy { Drawer(this) }
}

/** What the screen shows, and what its buttons do. */
class DrawingModel(private val app: Application) : AndroidViewModel(app) {
    private val drawer = (app as DrawingApp).drawer
    private var work: Job? = null
    private var trimmed = false // memory was asked for while a picture was being drawn

    var status by mutableStateOf("")
        private set
    var error by mutableStateOf("")
        private set
    var progress by mutableStateOf(0f)
        private set
    var busy by mutableStateOf(true)
        private set
    var picture by mutableStateOf<Bitmap?>(null)
        private set
    var prompt by mutableStateOf("")
        private set
    var recorded by mutableStateOf(0)
        private set

    init {
        start {
            drawer.open({ share ->
                status = text(R.string.preparing, (100 * share).toInt())
                progress = share.toFloat()
            }, object : Watcher {
                override fun begun(stage: Stage, step: Int, done: Int, total: Int) {
                    status = text(R.string.loading)
                }
            })
            status = text(R.string.ready)
        }
    }

    fun draw(prompt: String, seed: String) {
        val number = seed.trim().toLongOrNull()?.takeIf { it >= 0 }
        if (number == null) {
            error = text(R.string.bad_seed)
            return
        }
        start {
            val shown = drawer.draw(Request(prompt.trim(), number)) { stage, step, steps ->
                progress = step.toFloat() / (steps + 1)
                status = when (stage) {
                    Stage.LOADING -> text(R.string.loading)
                    Stage.READING -> text(R.string.reading)
                    Stage.DRAWING -> text(R.string.step, step, steps)
                    Stage.DECODING -> text(R.string.decoding)
                }
            }
            picture = shown.bitmap
            this.prompt = shown.prompt
            status = text(R.string.done, shown.seconds)
        }
    }

    fun cancel() {
        work?.cancel()
    }

    fun test() = start {
        val lines = drawer.test()
        val failed = lines.filter { it.passed != true }
        status = text(R.string.test_passed, lines.size)
        if (failed.isNotEmpty()) {
            status = ""
            error = text(R.string.test_failed, failed.joinToString("; ") { "${it.line}: ${it.detail}" })
        }
    }

    fun record(): String = drawer.record.lines().joinToString("\n", postfix = "\n")

    /** Called by the system when memory is short, or the app goes to the background. */
    fun trim(level: Int) {
        if (level < ComponentCallbacks2.TRIM_MEMORY_BACKGROUND) return
        if (busy) trimmed = true else release()
    }

    private fun release() {
        trimmed = false
        viewModelScope.launch { drawer.release() }
    }

    private fun start(task: suspend () -> Unit) {
        error = ""
        busy = true
        work = viewModelScope.launch {
            try {
                task()
            } catch (refused: Refused) {
                status = ""
                if (refused.reason != Reason.CANCELLED) error = refused.message.orEmpty()
            } catch (cancelled: CancellationException) {
                status = ""
                throw cancelled
            } catch (other: Exception) {
                status = ""
                error = text(R.string.failed, other.message ?: other.javaClass.simpleName)
            } finally {
                progress = 0f
                busy = false
                if (trimmed) release()
                recorded = drawer.record.lines().size
            }
        }
    }

    private fun text(id: Int, vararg values: Any): String = app.getString(id, *values)
}
