use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use leno_api::{
    Resource,
    model::{Model, wasm_plugin::Source},
};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use super::*;

const MODULE: &[u8] = b"\0asm and so on";
const LAYER: &str = "application/vnd.module.wasm.content.layer.v1+wasm";

/// A registry that speaks the pulling part of the distribution specification.
struct Distribution {
    address: String,
    /// By path: content.
    contents: Arc<Mutex<BTreeMap<String, Vec<u8>>>>,
    /// The heads of requests.
    heads: Arc<Mutex<Vec<String>>>,
}

impl Distribution {
    /// `token`: what a request must have; where it has none the registry says where it is given out.
    async fn start(token: Option<&'static str>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (contents, heads) = (Arc::<Mutex<BTreeMap<_, _>>>::default(), Arc::default());
        let registry = Self { address: address.clone(), contents, heads };
        let (contents, heads) = (registry.contents.clone(), registry.heads.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (contents, heads) = (contents.clone(), heads.clone());
                tokio::spawn(serve(stream, address.clone(), token, contents, heads));
            }
        });
        registry
    }

    fn put(&self, path: &str, content: impl Into<Vec<u8>>) {
        self.contents.lock().unwrap().insert(path.to_owned(), content.into());
    }

    /// An image `team/tag:v1` with `module`; its manifest.
    fn push(&self, module: &[u8], media_type: &str) -> Vec<u8> {
        let digest = format!("sha256:{}", hex(&digest_of(module)));
        let manifest = json!({
            "schemaVersion": 2, "config": {"mediaType": "application/vnd.module.wasm.config.v1+json"},
            "layers": [{"mediaType": media_type, "digest": digest, "size": module.len()}],
        });
        let manifest = manifest.to_string().into_bytes();
        self.put("/v2/team/tag/manifests/v1", manifest.clone());
        let by_digest = format!("/v2/team/tag/manifests/sha256:{}", hex(&digest_of(&manifest)));
        self.put(&by_digest, manifest.clone());
        self.put(&format!("/v2/team/tag/blobs/{digest}"), module);
        manifest
    }

    fn image(&self, reference: &str) -> OciReference {
        let url = format!("oci://{}/team/tag{reference}", self.address);
        let object = json!({
            "apiVersion": "leno.dev/v1alpha1", "kind": "WasmPlugin",
            "metadata": {"name": "tag"}, "spec": {"url": url},
        });
        match Resource::from_json(object).unwrap().model {
            Model::WasmPlugin(plugin) => match &plugin.source {
                Source::Oci(image) => image.clone(),
                other => panic!("{other:?}"),
            },
            other => panic!("{other:?}"),
        }
    }

    async fn pull(&self, reference: &str) -> Result<Bytes, String> {
        let pulled = pull(&Fetcher::default(), &self.image(reference), &Store::default()).await;
        pulled.map_err(|error| error.to_string())
    }

    fn heads(&self) -> Vec<String> {
        self.heads.lock().unwrap().clone()
    }
}

async fn serve(
    mut stream: TcpStream,
    address: String,
    token: Option<&'static str>,
    contents: Arc<Mutex<BTreeMap<String, Vec<u8>>>>,
    heads: Arc<Mutex<Vec<String>>>,
) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => return,
        }
    }
    let head = String::from_utf8(head).unwrap();
    let path = head.split(' ').nth(1).unwrap().to_owned();
    let may =
        token.is_none_or(|token| head.contains(&format!("authorization: Bearer {token}\r\n")));
    heads.lock().unwrap().push(head);
    let content = contents.lock().unwrap().get(&path).cloned();
    let (start, body) = match (path.starts_with("/token"), may, content) {
        (true, ..) => {
            let body = json!({"access_token": token.unwrap_or_default()}).to_string();
            ("200 OK".to_owned(), body.into_bytes())
        }
        (_, false, _) => {
            let challenge = format!(
                "401 Unauthorized\r\nwww-authenticate: Bearer realm=\"http://{address}/token\",service=\"the registry\""
            );
            (challenge, Vec::new())
        }
        (_, true, Some(body)) => ("200 OK".to_owned(), body),
        (_, true, None) => ("404 Not Found".to_owned(), Vec::new()),
    };
    let answer = format!("HTTP/1.1 {start}\r\ncontent-length: {}\r\n\r\n", body.len());
    // Whoever has had enough has gone.
    let _ = stream.write_all(&[answer.as_bytes(), &body].concat()).await;
    let _ = stream.shutdown().await;
}

#[tokio::test]
async fn pulls_by_tag_and_by_digest() {
    let registry = Distribution::start(None).await;
    let manifest = registry.push(MODULE, LAYER);
    assert_eq!(registry.pull(":v1").await.unwrap(), MODULE);
    let head = &registry.heads()[0];
    assert!(head.contains("application/vnd.oci.image.manifest.v1+json"), "{head}");
    let digest = format!("@sha256:{}", hex(&digest_of(&manifest)));
    assert_eq!(registry.pull(&digest).await.unwrap(), MODULE);
    let error = registry.pull(":v2").await.unwrap_err();
    assert!(error.contains("404"), "{error}");
}

#[tokio::test]
async fn gets_a_token_where_one_is_wanted() {
    let registry = Distribution::start(Some("nobody")).await;
    registry.push(MODULE, LAYER);
    assert_eq!(registry.pull(":v1").await.unwrap(), MODULE);
    let asked: Vec<_> =
        registry.heads().iter().map(|head| head.lines().next().unwrap().to_owned()).collect();
    assert_eq!(asked.len(), 4, "the token is used again: {asked:?}");
    assert_eq!(
        asked[1],
        "GET /token?scope=repository%3Ateam%2Ftag%3Apull&service=the%20registry HTTP/1.1"
    );
}

#[tokio::test]
async fn what_is_there_already_is_not_pulled_again() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::new(Some(folder.path().to_owned()));
    store.keep("u", &digest_of(MODULE), MODULE);
    let registry = Distribution::start(None).await;
    registry.push(MODULE, LAYER);
    let module = pull(&Fetcher::default(), &registry.image(":v1"), &store).await.unwrap();
    assert_eq!((&*module, registry.heads().len()), (MODULE, 1));
}

#[tokio::test]
async fn what_does_not_fit_its_digest_is_refused() {
    let registry = Distribution::start(None).await;
    let manifest = registry.push(MODULE, LAYER);
    let blob = format!("/v2/team/tag/blobs/sha256:{}", hex(&digest_of(MODULE)));
    registry.put(&blob, "something else");
    let error = registry.pull(":v1").await.unwrap_err();
    assert!(error.contains("layer is not what its digest says"), "{error}");
    let digest = hex(&digest_of(&manifest));
    registry.put(&format!("/v2/team/tag/manifests/sha256:{digest}"), "{}");
    let error = registry.pull(&format!("@sha256:{digest}")).await.unwrap_err();
    assert!(error.contains("manifest is not what its digest says"), "{error}");
}

#[tokio::test]
async fn container_images_have_the_module_among_their_files() {
    let files = archive::tests::archive(&[("etc/passwd", b"x"), ("./plugin.wasm", MODULE)]);
    let folder = tempfile::tempdir().unwrap();
    let store = Store::new(Some(folder.path().to_owned()));
    let registry = Distribution::start(None).await;
    for (layer, media_type) in [
        (files.clone(), "application/vnd.oci.image.layer.v1.tar"),
        (archive::tests::gzip(&files), "application/vnd.docker.image.rootfs.diff.tar.gzip"),
    ] {
        registry.push(&layer, media_type);
        let asked = registry.heads().len();
        for more in [2, 3] {
            let pulled = pull(&Fetcher::default(), &registry.image(":v1"), &store).await;
            assert_eq!(pulled.unwrap(), MODULE);
            assert_eq!(registry.heads().len(), asked + more, "the layer comes once");
        }
    }
    registry
        .push(&archive::tests::archive(&[("a", b"")]), "application/vnd.oci.image.layer.v1.tar");
    let error = registry.pull(":v1").await.unwrap_err();
    assert!(error.contains("no file called plugin.wasm"), "{error}");
}

#[tokio::test]
async fn an_index_leads_to_an_image() {
    let registry = Distribution::start(None).await;
    let manifest = registry.push(MODULE, LAYER);
    let listed = json!({"digest": format!("sha256:{}", hex(&digest_of(&manifest))), "size": 1});
    let index = json!({"schemaVersion": 2, "manifests": [listed]}).to_string().into_bytes();
    registry.put("/v2/team/tag/manifests/v1", index.clone());
    assert_eq!(registry.pull(":v1").await.unwrap(), MODULE);
    // An index that leads to an index is not followed for ever.
    let digest = format!("sha256:{}", hex(&digest_of(&index)));
    registry.put(&format!("/v2/team/tag/manifests/{digest}"), index);
    let outer = json!({"manifests": [{"digest": digest}]}).to_string();
    registry.put("/v2/team/tag/manifests/v1", outer);
    let error = registry.pull(":v1").await.unwrap_err();
    assert!(error.contains("an index of indexes"), "{error}");
}

#[test]
fn only_this_machine_is_spoken_to_in_the_clear() {
    for (registry, expected) in [
        ("localhost:5000", "http"),
        ("127.0.0.1:5000", "http"),
        ("[::1]:5000", "http"),
        ("ghcr.io", "https"),
        ("localhost.evil.example", "https"),
        ("10.0.0.1:5000", "https"),
    ] {
        assert_eq!(scheme(registry), expected, "{registry}");
    }
}

#[test]
fn a_registry_elsewhere_may_not_give_tokens_out_in_the_clear() {
    let image = OciReference {
        registry: "ghcr.io".to_owned(),
        repository: "team/tag".to_owned(),
        tag: None,
        digest: None,
    };
    let fetcher = Fetcher::default();
    let registry = Registry { fetcher: &fetcher, image: &image, token: None };
    let asked = |realm: &str| {
        let realm = realm.to_owned();
        registry.token_url(&Challenge { realm, service: None, scope: None })
    };
    assert!(asked("http://ghcr.io/token").is_err());
    let url = asked("https://ghcr.io/token?a=b").unwrap();
    assert_eq!(url, "https://ghcr.io/token?a=b&scope=repository%3Ateam%2Ftag%3Apull");
    assert_eq!(registry.url("x").unwrap(), "https://ghcr.io/v2/team/tag/x");
}
