//! Modules that come from elsewhere: from a real registry (Debian's `docker-registry`, the one of the distribution
//! project), and from servers that mean harm.

use std::{
    net::SocketAddr,
    process::{Child, Command, Stdio},
};

use sha2::Digest as _;
use tempfile::TempDir;
use tokio::io::AsyncWriteExt as _;

use super::*;

struct Registry {
    process: Child,
    address: SocketAddr,
    _folder: TempDir,
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Registry {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("config.yml");
        let storage = folder.path().join("storage");
        let text = format!(
            "version: 0.1\nlog: {{level: info}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\n\
             http: {{addr: '127.0.0.1:0'}}\n",
            storage.display()
        );
        std::fs::write(&config, text).unwrap();
        let log = folder.path().join("log");
        let process = Command::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(&log).unwrap())
            .spawn()
            .unwrap_or_else(|error| {
                panic!(
                    "docker-registry cannot be started: apt-get install docker-registry: {error}"
                )
            });
        let address = until("the registry to listen", async || {
            let text = std::fs::read_to_string(&log).unwrap();
            let (_, after) = text.split_once("listening on ")?;
            after.split(['"', ',', ' ', '\n']).next()?.parse().ok()
        })
        .await;
        Self { process, address, _folder: folder }
    }

    async fn ask(&self, request: impl AsRef<[u8]>) -> client::Answer {
        client::ask(self.address, request).await
    }

    /// As clients push: what it is to be called is said when it is there.
    async fn blob(&self, bytes: &[u8]) -> String {
        let begin = "POST /v2/team/mark/blobs/uploads/ HTTP/1.1\r\nHost: registry\r\n\
                     Content-Length: 0\r\nConnection: close\r\n\r\n";
        let begun = self.ask(begin).await;
        assert_eq!(begun.status, 202, "{}", begun.text());
        let location = begun.header("location").unwrap();
        let path = location.split_once("//registry").map_or(location, |(_, path)| path);
        let digest = digest(bytes);
        let length = bytes.len();
        let head = format!(
            "PUT {path}&digest={digest} HTTP/1.1\r\nHost: registry\r\nConnection: close\r\n\
             Content-Type: application/octet-stream\r\nContent-Length: {length}\r\n\r\n"
        );
        let put = self.ask([head.as_bytes(), bytes].concat()).await;
        assert_eq!(put.status, 201, "{}", put.text());
        digest
    }

    async fn manifest(&self, reference: &str, media_type: &str, manifest: &serde_json::Value) {
        let body = manifest.to_string();
        let length = body.len();
        let put = format!(
            "PUT /v2/team/mark/manifests/{reference} HTTP/1.1\r\nHost: registry\r\nConnection: close\r\n\
             Content-Type: {media_type}\r\nContent-Length: {length}\r\n\r\n{body}"
        );
        let put = self.ask(put).await;
        assert_eq!(put.status, 201, "{}", put.text());
    }

    /// An image of one layer.
    async fn push(&self, tag: &str, layer: &[u8], media_type: &str) -> serde_json::Value {
        let config = self.blob(b"{}").await;
        let image = "application/vnd.oci.image.manifest.v1+json";
        let manifest = serde_json::json!({
            "schemaVersion": 2, "mediaType": image,
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": config, "size": 2},
            "layers": [{"mediaType": media_type, "digest": self.blob(layer).await, "size": layer.len()}],
        });
        self.manifest(tag, image, &manifest).await;
        serde_json::json!({
            "mediaType": image, "digest": digest(manifest.to_string().as_bytes()),
            "size": manifest.to_string().len(), "platform": {"architecture": "amd64", "os": "linux"},
        })
    }

    fn plugin(&self, tag: &str) -> String {
        let file = format!("file://{}", probe().display());
        let image = format!("oci://{}/team/mark:{tag}", self.address);
        plugin("probe", "orders", "").replace(&file, &image)
    }
}

fn digest(bytes: &[u8]) -> String {
    let digest = sha2::Sha256::digest(bytes);
    let digits: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{digits}")
}

/// What `docker build` makes of `FROM scratch` and `COPY probe.wasm ./plugin.wasm`, by the tar of this machine.
fn archive(options: &[&str]) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(probe(), folder.path().join("plugin.wasm")).unwrap();
    std::fs::create_dir(folder.path().join("etc")).unwrap();
    std::fs::write(folder.path().join("etc/other"), "no module").unwrap();
    let packed = Command::new("tar")
        .args(options)
        .args(["-cf", "-", "./etc", "./plugin.wasm"])
        .current_dir(folder.path())
        .output()
        .unwrap();
    assert!(packed.status.success(), "{}", String::from_utf8_lossy(&packed.stderr));
    packed.stdout
}

async fn runs(plugin: &str, cache: &Path) {
    let orders = Origin::echo("orders").await;
    let mesh = Mesh::default()
        .service("orders", "http", &[orders.address])
        .yaml(plugin)
        .arguments(&["--module-cache", cache.to_str().unwrap()]);
    let proxy = mesh.start().await;
    until("the plugin to run", async || {
        let fields = "x-req-headers: add-req=x-ran:1\r\n";
        let answer = client::get_with(proxy.outbound, "orders", "/", fields).await;
        (answer.status == 200 && answer.text().contains("x-ran")).then_some(())
    })
    .await;
}

#[tokio::test]
async fn modules_come_from_a_registry_in_every_form() {
    let registry = Registry::start().await;
    let module = std::fs::read(probe()).unwrap();
    // Compiled once; what has been pulled once is found by its digest.
    let cache = tempfile::tempdir().unwrap();
    let mut listed = Vec::new();
    for (tag, layer, media_type) in [
        ("raw", module, "application/vnd.module.wasm.content.layer.v1+wasm"),
        ("gnu", archive(&["-z", "--format=gnu"]), "application/vnd.oci.image.layer.v1.tar+gzip"),
        ("pax", archive(&["--format=pax"]), "application/vnd.oci.image.layer.v1.tar"),
        (
            "v7",
            archive(&["-z", "--format=v7"]),
            "application/vnd.docker.image.rootfs.diff.tar.gzip",
        ),
    ] {
        listed.push(registry.push(tag, &layer, media_type).await);
        runs(&registry.plugin(tag), cache.path()).await;
    }
    let index = "application/vnd.oci.image.index.v1+json";
    let manifest =
        serde_json::json!({"schemaVersion": 2, "mediaType": index, "manifests": [listed[1]]});
    registry.manifest("index", index, &manifest).await;
    runs(&registry.plugin("index"), cache.path()).await;
}

/// What `/plugins` says of the only one, once it says that something is wrong.
async fn refused(module: &str, more: &str) -> (String, Proxy) {
    let file = format!("file://{}", probe().display());
    let spec = plugin("probe", "orders", more).replace(&file, module);
    let plain = Origin::echo("plain").await;
    let mesh = Mesh::default()
        .service("orders", "http", &[plain.address])
        .service("plain", "http", &[plain.address])
        .yaml(&spec);
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().to_str().unwrap().to_owned();
    let proxy = mesh.arguments(&["--module-cache", &cache]).start().await;
    let reason = until("a reason", async || {
        let page = proxy.json("/plugins").await;
        let row = &page["plugins"][0];
        (row["state"] == "failed").then(|| row["reason"].as_str().unwrap().to_owned())
    })
    .await;
    for _ in 0..5 {
        proxy.serves("plain").await;
    }
    assert_eq!(client::get(proxy.outbound, "orders", "/").await.status, 500);
    (reason, proxy)
}

#[tokio::test]
async fn what_servers_can_do_costs_its_own_plugin() {
    let sha256 = format!("sha256: {}\n", "0a".repeat(32));
    let endless = Origin::raw(|mut stream, _| async move {
        let _ = crate::origin::read_request(&mut stream).await;
        let head = "HTTP/1.1 200 OK\r\nContent-Length: 1073741824\r\n\r\n";
        let _ = stream.write_all(head.as_bytes()).await;
        let portion = vec![0; 1 << 20];
        while stream.write_all(&portion).await.is_ok() {}
    })
    .await;
    let (reason, proxy) = refused(&format!("http://{}/x.wasm", endless.address), &sha256).await;
    assert!(reason.contains("longer than 67108864 bytes"), "{reason}");
    assert!(proxy.peak_memory() < 400 << 20, "{}", proxy.peak_memory());

    let around =
        Origin::canned("HTTP/1.1 302 Found\r\nLocation: /x.wasm\r\nContent-Length: 0\r\n\r\n")
            .await;
    let (reason, _) = refused(&format!("http://{}/x.wasm", around.address), &sha256).await;
    assert!(reason.contains("too many redirects"), "{reason}");
    assert!(around.accepted() >= 6);
    let (reason, _) = refused(&format!("oci://{}/team/mark:v1", around.address), "").await;
    assert!(reason.contains("manifest: too many redirects"), "{reason}");

    let other = Origin::canned("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nother").await;
    let (reason, _) = refused(&format!("http://{}/x.wasm", other.address), &sha256).await;
    assert!(reason.contains("it has the sha256") && reason.contains("as it should"), "{reason}");

    // Who speaks no TLS says so at once: neither side would wait for the other to begin.
    let plain = Origin::raw(|mut stream, _| async move {
        let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        crate::origin::drain(&mut stream).await;
    })
    .await;
    let (reason, _) = refused(&format!("https://{}/x.wasm", plain.address), &sha256).await;
    assert!(reason.contains("TLS: "), "{reason}");
    let cut = Origin::canned_once("HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nother").await;
    let (reason, _) = refused(&format!("http://{}/x.wasm", cut.address), &sha256).await;
    assert!(reason.contains("HTTP: "), "{reason}");
}

/// A module that hangs while it starts does not go live, and costs nobody anything.
#[tokio::test]
async fn a_module_that_hangs_in_its_start_is_refused() {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("hangs.wasm");
    let module =
        "(module (memory (export \"memory\") 1) (func (export \"proxy_abi_version_0_2_1\"))
        (func (export \"malloc\") (param i32) (result i32) (i32.const 1024))
        (func (export \"_initialize\") (loop $for_ever (br $for_ever))))";
    std::fs::write(&path, wat::parse_str(module).unwrap()).unwrap();
    let limits = "limits: {startDeadline: 300ms}\n";
    let (reason, _) = refused(&format!("file://{}", path.display()), limits).await;
    assert!(reason.contains("_initialize"), "{reason}");
}

/// The proxy starts, and everything else goes on.
#[tokio::test]
async fn a_configuration_that_a_plugin_refuses_stops_nobody() {
    let file = format!("file://{}", probe().display());
    let (reason, _) = refused(&file, "pluginConfig: 'false'\n").await;
    assert!(reason.contains("refused its configuration"), "{reason}");
}

/// The folder where modules are kept is a help and no more: unwritable, damaged or of two proxies.
#[tokio::test]
async fn plugins_run_whatever_becomes_of_the_folder_of_modules() {
    let orders = Origin::echo("orders").await;
    let folder = tempfile::tempdir().unwrap();
    let start = async |cache: &Path| {
        let mesh = Mesh::default()
            .service("orders", "http", &[orders.address])
            .yaml(&plugin("probe", "orders", ""))
            .arguments(&["--module-cache", cache.to_str().unwrap()]);
        let proxy = mesh.start().await;
        until("the plugin to run", async || {
            let fields = "x-req-headers: add-req=x-ran:1\r\n";
            let answer = client::get_with(proxy.outbound, "orders", "/", fields).await;
            (answer.status == 200 && answer.text().contains("x-ran")).then_some(())
        })
        .await;
        proxy
    };
    let cache = folder.path().join("cache");
    let (one, two) = tokio::join!(start(&cache), start(&cache));
    drop((one, two));
    let mut kept = 0;
    for entry in std::fs::read_dir(&cache).unwrap() {
        let path = entry.unwrap().path();
        let mut bytes = std::fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 0xff;
        std::fs::write(&path, bytes).unwrap();
        kept += 1;
    }
    assert!(kept >= 2, "the module and its native code");
    start(&cache).await;
    // Not even root can make a folder of a file.
    let file = folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    let proxy = start(&file).await;
    assert!(proxy.errors().contains("keeping the module"), "{}", proxy.errors());
}
