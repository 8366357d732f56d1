//! Which layer of an image has the module. Pure.

use serde::Deserialize;

use crate::config::prepare::{
    MAX_MODULE_BYTES,
    store::{Digest, parse_hex},
};

/// What a registry is asked for.
pub(super) const ACCEPT: &str = "application/vnd.oci.image.manifest.v1+json, \
                                 application/vnd.docker.distribution.manifest.v2+json, \
                                 application/vnd.oci.image.index.v1+json, \
                                 application/vnd.docker.distribution.manifest.list.v2+json";
/// The layer of a Wasm image (the Solo and Istio image specification), and that of a CNCF Wasm artifact.
const MODULES: [&str; 2] =
    ["application/vnd.module.wasm.content.layer.v1+wasm", "application/wasm"];
/// The layer of a container image, which has the module among its files (the `compat` variant of that specification).
const ARCHIVES: [&str; 4] = [
    "application/vnd.oci.image.layer.v1.tar+gzip",
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
    "application/vnd.docker.image.rootfs.diff.tar",
];

/// What a manifest leads to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// The layer to take.
    Layer(Layer),
    /// It is a list of images; that one is to be taken.
    Image(Digest),
}

/// A layer that is or has a module.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Layer {
    pub(super) digest: Digest,
    pub(super) is_archive: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Manifest {
    #[serde(default)]
    layers: Vec<Descriptor>,
    manifests: Option<Vec<Listed>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    #[serde(default)]
    media_type: String,
    digest: String,
    size: u64,
}

#[derive(Deserialize)]
struct Listed {
    digest: String,
    platform: Option<Platform>,
}

#[derive(Deserialize)]
struct Platform {
    architecture: String,
}

/// Finds the layer in a manifest, or an image in an index.
///
/// # Errors
/// For people: why there is none.
pub(super) fn read(bytes: &[u8]) -> Result<Found, String> {
    // What the parser says would repeat parts of a document that may be anything.
    let manifest: Manifest =
        serde_json::from_slice(bytes).map_err(|_| "the manifest is none".to_owned())?;
    match manifest.manifests {
        Some(listed) => image(&listed).map(Found::Image),
        None => layer(&manifest.layers).map(Found::Layer),
    }
}

/// Modules run everywhere, so that any image does; but what a builder adds about its work (attestations) is none. It
/// says `unknown` for the platform of that.
fn image(listed: &[Listed]) -> Result<Digest, String> {
    let architecture = |listed: &Listed| {
        listed.platform.as_ref().map(|platform| platform.architecture.clone()).unwrap_or_default()
    };
    let mut images = listed.iter().filter(|listed| architecture(listed) != "unknown");
    let wasm = listed.iter().find(|listed| architecture(listed) == "wasm");
    let image = wasm.or_else(|| images.next());
    let image = image.ok_or_else(|| "it is an index without an image".to_owned())?;
    digest(&image.digest).ok_or_else(|| "the image has no SHA-256".to_owned())
}

fn layer(layers: &[Descriptor]) -> Result<Layer, String> {
    let mut modules = layers.iter().filter(|layer| MODULES.contains(&layer.media_type.as_str()));
    // The last layer of a container image is what its builder wanted to be on top.
    let archive = layers.last().filter(|layer| ARCHIVES.contains(&layer.media_type.as_str()));
    let (found, is_archive) = match (modules.next(), modules.next(), archive) {
        (Some(module), None, _) => (module, false),
        (Some(_), Some(_), _) => return Err("it has more than one module".to_owned()),
        (None, _, Some(archive)) => (archive, true),
        (None, _, None) => {
            let last =
                layers.last().map(|layer| format!("; its last one is {:?}", layer.media_type));
            return Err(format!(
                "it has no layer of type {}, and is no container image with a last layer of type {}{}",
                MODULES.join(" or "),
                ARCHIVES.join(" or "),
                last.unwrap_or_default()
            ));
        }
    };
    if found.size > MAX_MODULE_BYTES as u64 {
        let size = found.size;
        return Err(format!(
            "the layer of the module has {size} bytes, more than the {MAX_MODULE_BYTES} that are allowed"
        ));
    }
    let digest = digest(&found.digest).ok_or_else(|| "the layer has no SHA-256".to_owned())?;
    Ok(Layer { digest, is_archive })
}

fn digest(text: &str) -> Option<Digest> {
    text.strip_prefix("sha256:").and_then(parse_hex)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn layers(layers: Value) -> Result<Found, String> {
        read(json!({"schemaVersion": 2, "config": {}, "layers": layers}).to_string().as_bytes())
    }

    fn of(kind: &str, byte: u8) -> Value {
        let digest = format!("sha256:{}", format!("{byte:02x}").repeat(32));
        json!({"mediaType": kind, "digest": digest, "size": 7})
    }

    fn found(byte: u8, is_archive: bool) -> Result<Found, String> {
        Ok(Found::Layer(Layer { digest: [byte; 32], is_archive }))
    }

    #[test]
    fn finds_the_layer_of_the_module() {
        for kind in MODULES {
            assert_eq!(layers(json!([of("text/plain", 1), of(kind, 10)])), found(10, false));
            assert_eq!(layers(json!([of(kind, 10), of(ARCHIVES[0], 1)])), found(10, false));
        }
        for kind in ARCHIVES {
            assert_eq!(layers(json!([of(kind, 10)])), found(10, true));
            assert_eq!(layers(json!([of(kind, 1), of(kind, 10)])), found(10, true));
        }
    }

    #[test]
    fn finds_an_image_in_an_index() {
        let listed = |byte: u8, architecture: &str| {
            let mut listed = of("application/vnd.oci.image.manifest.v1+json", byte);
            if !architecture.is_empty() {
                listed["platform"] = json!({"architecture": architecture, "os": "linux"});
            }
            listed
        };
        let index = |listed: &[Value]| read(json!({"manifests": listed}).to_string().as_bytes());
        for (images, byte) in [
            (vec![listed(1, "amd64"), listed(2, "unknown")], 1),
            (vec![listed(1, "unknown"), listed(2, "arm64"), listed(3, "amd64")], 2),
            (vec![listed(1, "amd64"), listed(2, "wasm")], 2),
            (vec![listed(1, "")], 1),
        ] {
            assert_eq!(index(&images), Ok(Found::Image([byte; 32])), "{images:?}");
        }
        for images in [vec![], vec![listed(1, "unknown")]] {
            assert!(index(&images).unwrap_err().contains("an index without an image"));
        }
        let other = json!({"digest": "sha512:00"});
        assert!(index(&[other]).unwrap_err().contains("no SHA-256"));
    }

    #[test]
    fn says_what_is_wrong() {
        let module = of(MODULES[0], 10);
        let zstd = "application/vnd.oci.image.layer.v1.tar+zstd";
        for (given, reason) in [
            (json!([]), "no layer of type"),
            (json!([of("text/plain", 1)]), "its last one is \"text/plain\""),
            (json!([of(ARCHIVES[0], 1), of(zstd, 2)]), "its last one is \"application/vnd.oci"),
            (json!([module, module]), "more than one module"),
            (json!([{"mediaType": MODULES[0], "digest": "sha512:00", "size": 7}]), "no SHA-256"),
            (
                json!([{"mediaType": ARCHIVES[0], "digest": module["digest"], "size": 1 << 30}]),
                "bytes, more than",
            ),
            (json!([{"mediaType": MODULES[0]}]), "the manifest is none"),
        ] {
            let error = layers(given.clone()).unwrap_err();
            assert!(error.contains(reason), "{given}: {error}");
        }
        assert!(read(b"<html>").unwrap_err().contains("is none"));
    }
}
