// The bundle's files: Google Play delivers this pack with the app, and the app reads them as its own assets.
plugins {
    alias(libs.plugins.android.asset.pack)
}

assetPack {
    packName.set("model")
    dynamicDelivery { deliveryType.set("install-time") }
}
