package snapgen.app

import ai.onnxruntime.OnnxTensor
import ai.onnxruntime.OrtEnvironment
import ai.onnxruntime.OrtException
import ai.onnxruntime.OrtSession
import java.io.File
import java.nio.FloatBuffer
import java.nio.IntBuffer
import snapgen.core.Component
import snapgen.core.Engine
import snapgen.core.Floats
import snapgen.core.Ints
import snapgen.core.Reason
import snapgen.core.Refused
import snapgen.core.Tensor

/** Runs `.onnx` files with onnxruntime on the processor. Sessions take turns, so that their threads do not wait in loops. */
class OnnxruntimeEngine(private val folder: File, private val threads: Int) : Engine {
    private val environment: OrtEnvironment = OrtEnvironment.getEnvironment()
    private val sessions = HashMap<String, OrtSession>()

    override val about: Map<String, Any> =
        mapOf("provider" to "cpu", "threads" to threads, "onnxruntime" to BuildConfig.RUNTIME_VERSION)

    override fun load(component: Component) {
        if (component.role in sessions) return
        OrtSession.SessionOptions().use { options ->
            options.setIntraOpNumThreads(threads)
            options.addConfigEntry("session.force_spinning_stop", "1")
            sessions[component.role] = told("load", component) {
                environment.createSession(File(folder, component.path).path, options)
            }
        }
    }

    override fun unload(component: Component) {
        sessions.remove(component.role)?.close()
    }

    override fun run(component: Component, inputs: Map<String, Tensor>): Map<String, Floats> {
        val session = sessions.getValue(component.role)
        val given = LinkedHashMap<String, OnnxTensor>()
        try {
            for (port in component.inputs) given[port.name] = tensorOf(inputs.getValue(port.name))
            return told("run", component) {
                session.run(given).use { made ->
                    component.outputs.associate { port -> port.name to floatsOf(made.get(port.name).get() as OnnxTensor) }
                }
            }
        } finally {
            given.values.forEach { it.close() }
        }
    }

    override fun close() {
        sessions.values.forEach { it.close() }
        sessions.clear()
    }

    private fun tensorOf(tensor: Tensor): OnnxTensor {
        val shape = LongArray(tensor.shape.size) { tensor.shape[it].toLong() }
        return when (tensor) {
            is Floats -> OnnxTensor.createTensor(environment, FloatBuffer.wrap(tensor.data), shape)
            is Ints -> OnnxTensor.createTensor(environment, IntBuffer.wrap(tensor.data), shape)
        }
    }

    private fun floatsOf(tensor: OnnxTensor): Floats {
        val shape = tensor.info.shape.let { IntArray(it.size) { i -> it[i].toInt() } }
        val buffer = tensor.floatBuffer
        return Floats(shape, FloatArray(buffer.remaining()).also { buffer.get(it) })
    }

    private fun <T> told(task: String, component: Component, work: () -> T): T =
        try {
            work()
        } catch (error: OrtException) {
            throw Refused(Reason.RUNTIME, "onnxruntime cannot $task ${component.role} on this device: ${error.message}", error)
        }
}
