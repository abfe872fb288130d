package snapgen.app

import java.io.File
import org.pytorch.executorch.EValue
import org.pytorch.executorch.Module
import org.pytorch.executorch.Tensor as ModuleTensor
import snapgen.core.Component
import snapgen.core.Engine
import snapgen.core.Floats
import snapgen.core.Ints
import snapgen.core.Reason
import snapgen.core.Refused
import snapgen.core.Tensor

/** Runs `.pte` files with ExecuTorch, by the delegate that each file names. Weights are mapped, not copied. */
class ExecuTorchEngine(private val folder: File, private val threads: Int) : Engine {
    private val modules = HashMap<String, Module>()

    override val about: Map<String, Any> = mapOf(
        "provider" to Shipped.TARGET.substringAfter(':'), "threads" to threads, "executorch" to BuildConfig.RUNTIME_VERSION,
    )

    override fun load(component: Component) {
        if (component.role in modules) return
        modules[component.role] = told("load", component) {
            Module.load(File(folder, component.path).path, Module.LOAD_MODE_MMAP, threads)
        }
    }

    override fun unload(component: Component) {
        modules.remove(component.role)?.destroy()
    }

    override fun run(component: Component, inputs: Map<String, Tensor>): Map<String, Floats> {
        val module = modules.getValue(component.role)
        val given = component.inputs.map { port -> EValue.from(tensorOf(inputs.getValue(port.name))) }.toTypedArray()
        return told("run", component) {
            val made = module.execute(component.entry ?: "forward", *given)
            check(made.size == component.outputs.size) { "it gave ${made.size} outputs" }
            component.outputs.zip(made.asList()).associate { (port, value) -> port.name to floatsOf(value.toTensor()) }
        }
    }

    override fun close() {
        modules.values.forEach { it.destroy() }
        modules.clear()
    }

    private fun tensorOf(tensor: Tensor): ModuleTensor {
        val shape = LongArray(tensor.shape.size) { tensor.shape[it].toLong() }
        return when (tensor) {
            is Floats -> ModuleTensor.fromBlob(tensor.data, shape)
            is Ints -> ModuleTensor.fromBlob(tensor.data, shape)
        }
    }

    private fun floatsOf(tensor: ModuleTensor): Floats =
        Floats(tensor.shape().let { IntArray(it.size) { i -> it[i].toInt() } }, tensor.dataAsFloatArray)

    private fun <T> told(task: String, component: Component, work: () -> T): T =
        try {
            work()
        } catch (error: RuntimeException) { // its own errors, and those of a method that a file does not have
            throw Refused(Reason.RUNTIME, "ExecuTorch cannot $task ${component.role} on this device: ${error.message}", error)
        }
}
