//! Which layer of an image is the module. Pure.

use serde::Deserialize;

use crate::config::prepare::{
    MAX_MODULE_BYTES,
    store::{Digest, parse_hex},
};

/// What a registry is asked for.
pub(super) const ACCEPT: &str = "application/vnd.oci.image.manifest.v1+json, \
                                 application/vnd.docker.distribution.manifest.v2+json";
/// The layer of a Wasm image (the Solo and Istio image specification), and that of a CNCF Wasm artifact.
const MODULES: [&str; 2] =
    ["application/vnd.module.wasm.content.layer.v1+wasm", "application/wasm"];
/// The layer of a container image, which may have a module among its files.
const ARCHIVES: [&str; 3] = [
    "application/vnd.oci.image.layer.v1.tar+gzip",
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
];

/// A layer that is a module.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Layer {
    pub(super) digest: Digest,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Manifest {
    #[serde(default)]
    layers: Vec<Descriptor>,
    manifests: Option<Vec<serde::de::IgnoredAny>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    #[serde(default)]
    media_type: String,
    digest: String,
    size: u64,
}

/// Finds the layer in a manifest.
pub(super) fn layer(bytes: &[u8]) -> Result<Layer, String> {
    // What the parser says would repeat parts of a document that may be anything.
    let manifest: Manifest =
        serde_json::from_slice(bytes).map_err(|_| "the manifest is none".to_owned())?;
    if manifest.manifests.is_some() {
        return Err("it is an index of several images; name one of them by its digest".to_owned());
    }
    let is = |kinds: &'static [&'static str]| {
        move |layer: &&Descriptor| kinds.contains(&layer.media_type.as_str())
    };
    let mut modules = manifest.layers.iter().filter(is(&MODULES));
    let (first, second) = (modules.next(), modules.next());
    let Some(module) = first.filter(|_| second.is_none()) else {
        let archive = manifest.layers.iter().any(|layer| is(&ARCHIVES)(&layer));
        return Err(match (first.is_some(), archive) {
            (true, _) => "it has more than one module".to_owned(),
            (false, true) => format!(
                "it is a container image (a tar archive), which is not supported; push the module as a layer of type {}",
                MODULES[0]
            ),
            (false, false) => format!("it has no layer of type {}", MODULES.join(" or ")),
        });
    };
    if module.size > MAX_MODULE_BYTES as u64 {
        let size = module.size;
        return Err(format!(
            "the module has {size} bytes, more than the {MAX_MODULE_BYTES} that are allowed"
        ));
    }
    let digest = module.digest.strip_prefix("sha256:").and_then(parse_hex);
    digest.map(|digest| Layer { digest }).ok_or_else(|| "the layer has no SHA-256".to_owned())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(layers: serde_json::Value) -> Result<Layer, String> {
        layer(json!({"schemaVersion": 2, "config": {}, "layers": layers}).to_string().as_bytes())
    }

    #[test]
    fn finds_the_one_module() {
        let digest = format!("sha256:{}", "0a".repeat(32));
        let of = |kind: &str| json!({"mediaType": kind, "digest": digest, "size": 7});
        for kind in MODULES {
            assert_eq!(read(json!([of("text/plain"), of(kind)])), Ok(Layer { digest: [10; 32] }));
        }
    }

    #[test]
    fn says_what_is_wrong() {
        let digest = format!("sha256:{}", "0a".repeat(32));
        let of = |kind: &str| json!({"mediaType": kind, "digest": digest, "size": 7});
        let module = of(MODULES[0]);
        for (layers, reason) in [
            (json!([]), "no layer of type"),
            (json!([of("text/plain")]), "no layer of type"),
            (json!([of(ARCHIVES[0])]), "push the module as a layer"),
            (json!([module, module]), "more than one module"),
            (json!([{"mediaType": MODULES[0], "digest": "sha512:00", "size": 7}]), "no SHA-256"),
            (
                json!([{"mediaType": MODULES[0], "digest": digest, "size": 1 << 30}]),
                "bytes, more than",
            ),
            (json!([{"mediaType": MODULES[0]}]), "the manifest is none"),
        ] {
            let error = read(layers.clone()).unwrap_err();
            assert!(error.contains(reason), "{layers}: {error}");
        }
        let index = json!({"manifests": [{"digest": digest}]}).to_string();
        assert!(layer(index.as_bytes()).unwrap_err().contains("an index"));
        assert!(layer(b"<html>").unwrap_err().contains("is none"));
    }
}
