package snapgen.app

import android.content.Intent
import android.os.Bundle
import androidx.activity.ComponentActivity
import androidx.activity.compose.setContent
import androidx.activity.viewModels
import androidx.compose.foundation.Image
import androidx.compose.foundation.layout.Arrangement
import androidx.compose.foundation.layout.Column
import androidx.compose.foundation.layout.Row
import androidx.compose.foundation.layout.fillMaxWidth
import androidx.compose.foundation.layout.padding
import androidx.compose.foundation.layout.safeDrawingPadding
import androidx.compose.foundation.rememberScrollState
import androidx.compose.foundation.text.KeyboardOptions
import androidx.compose.foundation.verticalScroll
import androidx.compose.material3.Button
import androidx.compose.material3.LinearProgressIndicator
import androidx.compose.material3.MaterialTheme
import androidx.compose.material3.OutlinedButton
import androidx.compose.material3.OutlinedTextField
import androidx.compose.material3.Surface
import androidx.compose.material3.Text
import androidx.compose.material3.TextButton
import androidx.compose.runtime.Composable
import androidx.compose.runtime.getValue
import androidx.compose.runtime.mutableStateOf
import androidx.compose.runtime.saveable.rememberSaveable
import androidx.compose.runtime.setValue
import androidx.compose.ui.Modifier
import androidx.compose.ui.graphics.asImageBitmap
import androidx.compose.ui.layout.ContentScale
import androidx.compose.ui.res.stringResource
import androidx.compose.ui.semantics.LiveRegionMode
import androidx.compose.ui.semantics.liveRegion
import androidx.compose.ui.semantics.semantics
import androidx.compose.ui.text.input.KeyboardType
import androidx.compose.ui.unit.dp

class MainActivity : ComponentActivity() {
    private val model: DrawingModel by viewModels()

    override fun onCreate(savedInstanceState: Bundle?) {
        super.onCreate(savedInstanceState)
        setContent {
            MaterialTheme {
                Surface { Screen(model, ::share) }
            }
        }
    }

    override fun onTrimMemory(level: Int) {
        super.onTrimMemory(level)
        model.trim(level)
    }

    /** The user sends the record, to whom it may concern; the app itself sends nothing. */
    private fun share() {
        val intent = Intent(Intent.ACTION_SEND).setType("text/plain").putExtra(Intent.EXTRA_TEXT, model.record())
        startActivity(Intent.createChooser(intent, null))
    }
}

@Composable
private fun Screen(model: DrawingModel, share: () -> Unit) {
    var prompt by rememberSaveable { mutableStateOf("@PROMPT@") }
    var seed by rememberSaveable { mutableStateOf("0") }
    Column(
        Modifier.safeDrawingPadding().padding(16.dp).fillMaxWidth().verticalScroll(rememberScrollState()),
        Arrangement.spacedBy(12.dp),
    ) {
        OutlinedTextField(prompt, { prompt = it }, Modifier.fillMaxWidth(), label = { Text(stringResource(R.string.prompt)) })
        OutlinedTextField(
            seed,
            { seed = it },
            label = { Text(stringResource(R.string.seed)) },
            singleLine = true,
            keyboardOptions = KeyboardOptions(keyboardType = KeyboardType.Number),
        )
        Row(horizontalArrangement = Arrangement.spacedBy(12.dp)) {
            Button({ model.draw(prompt, seed) }, enabled = !model.busy) { Text(stringResource(R.string.draw)) }
            OutlinedButton(model::cancel, enabled = model.busy) { Text(stringResource(R.string.cancel)) }
        }
        if (model.busy) LinearProgressIndicator({ model.progress }, Modifier.fillMaxWidth())
        Text(model.status, Modifier.semantics { liveRegion = LiveRegionMode.Polite })
        if (model.error.isNotEmpty()) {
            Text(
                model.error,
                Modifier.semantics { liveRegion = LiveRegionMode.Assertive },
                color = MaterialTheme.colorScheme.error,
            )
        }
        model.picture?.let {
            Image(
                it.asImageBitmap(),
                stringResource(R.string.picture_of, model.prompt),
                Modifier.fillMaxWidth(),
                contentScale = ContentScale.FillWidth,
            )
        }
        Row(horizontalArrangement = Arrangement.spacedBy(12.dp)) {
            TextButton(model::test, enabled = !model.busy) { Text(stringResource(R.string.self_test)) }
            TextButton(share, enabled = model.recorded > 0) { Text(stringResource(R.string.save_record, model.recorded)) }
        }
    }
}
