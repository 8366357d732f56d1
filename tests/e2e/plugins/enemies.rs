//! Plugins whose author means harm, beyond what breaks them: each costs no more than what it sees itself.

use super::*;

/// Writes a guest of these functions beside the other modules of tests.
fn guest(name: &str, functions: &str) -> PathBuf {
    let text = format!(
        "(module
           (import \"env\" \"proxy_register_shared_queue\" (func $register (param i32 i32 i32) (result i32)))
           (import \"env\" \"proxy_enqueue_shared_queue\" (func $enqueue (param i32 i32 i32) (result i32)))
           (import \"env\" \"proxy_dequeue_shared_queue\" (func $dequeue (param i32 i32 i32) (result i32)))
           (import \"env\" \"proxy_replace_header_map_value\" (func $replace (param i32 i32 i32 i32 i32) (result i32)))
           (import \"env\" \"proxy_add_header_map_value\" (func $add (param i32 i32 i32 i32 i32) (result i32)))
           (import \"env\" \"proxy_set_buffer_bytes\" (func $edit (param i32 i32 i32 i32 i32) (result i32)))
           (memory (export \"memory\") 32)
           (data (i32.const 64) \":method\") (data (i32.const 80) \"HEAD\") (data (i32.const 96) \"x-big\")
           (func (export \"proxy_abi_version_0_2_1\"))
           (func (export \"proxy_on_memory_allocate\") (param i32) (result i32) (i32.const 4096))
           {functions})"
    );
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("enemies");
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join(format!("{name}.wasm"));
    std::fs::write(&path, wat::parse_str(text).unwrap()).unwrap();
    path
}

/// A proxy with one worker, so that nobody can do the work of one that hangs: `orders` behind a guest, `plain` behind none.
struct Beset {
    proxy: Proxy,
    _origins: [Origin; 2],
}

impl Beset {
    async fn by(name: &str, functions: &str, more: &str) -> Self {
        let (orders, plain) = (Origin::echo("orders").await, Origin::echo("plain").await);
        let mesh = Mesh::default()
            .service("orders", "http", &[orders.address])
            .service("plain", "http", &[plain.address])
            .yaml(&plugin_of(&guest(name, functions), name, "orders", more));
        let proxy = cached(mesh).start().await;
        let line = "is live";
        until(line, async || proxy.errors().contains(line).then_some(())).await;
        Self { proxy, _origins: [orders, plain] }
    }

    /// Until workers have the plugin: a moment after the log says that it is live.
    async fn runs(&self) {
        until("the plugin to run", async || {
            let answer = client::get(self.proxy.outbound, "orders", "/").await;
            (answer.status == 200).then_some(())
        })
        .await;
    }

    async fn serves_others(&self) {
        for _ in 0..20 {
            self.proxy.serves("plain").await;
        }
    }
}

#[tokio::test]
async fn a_plugin_that_feeds_its_own_queue_stops_nobody() {
    let functions = "
        (func (export \"proxy_on_configure\") (param i32 i32) (result i32)
          (drop (call $register (i32.const 96) (i32.const 5) (i32.const 0)))
          (drop (call $enqueue (i32.load (i32.const 0)) (i32.const 96) (i32.const 5)))
          (i32.const 1))
        (func (export \"proxy_on_queue_ready\") (param i32 i32)
          (drop (call $dequeue (local.get 1) (i32.const 8) (i32.const 12)))
          (drop (call $enqueue (local.get 1) (i32.const 96) (i32.const 5))))";
    let beset = Beset::by("requeue", functions, "").await;
    // Its instance has started by then.
    until("the queue to be told of", async || {
        let page = beset.proxy.json("/plugins").await;
        (page["plugins"][0]["figures"]["calls"].as_u64() > Some(100)).then_some(())
    })
    .await;
    beset.serves_others().await;
}

#[tokio::test]
async fn a_request_that_a_plugin_makes_head_has_an_answer_without_a_body() {
    let functions = "
        (func (export \"proxy_on_request_headers\") (param i32 i32 i32) (result i32)
          (drop (call $replace (i32.const 0) (i32.const 64) (i32.const 7) (i32.const 80) (i32.const 4)))
          (i32.const 0))";
    let beset = Beset::by("make-head", functions, "").await;
    beset.runs().await;
    let mut wire = Wire::connect(beset.proxy.outbound).await;
    for _ in 0..3 {
        // Whoever asked with GET takes what follows the head for a body, as long as it says.
        let answer = wire.ask("GET / HTTP/1.1\r\nHost: orders\r\n\r\n").await;
        assert_eq!((answer.status, answer.text().as_str()), (200, ""), "{answer:?}");
        let answer = wire.ask("GET / HTTP/1.1\r\nHost: plain\r\n\r\n").await;
        assert_eq!(answer.echo()["origin"], "plain");
    }
}

#[tokio::test]
async fn what_a_plugin_adds_is_bounded() {
    // A mebibyte in each of a thousand fields, and as much behind a body.
    let many = |call: &str| {
        format!(
            "(local $at i32)
             (loop $again {call}
               (br_if $again (i32.lt_u
                 (local.tee $at (i32.add (local.get $at) (i32.const 1))) (i32.const 300))))
             (i32.const 0)"
        )
    };
    let fill = "(memory.fill (i32.const 65536) (i32.const 97) (i32.const 1048576))";
    let field = |map: u32| {
        let value = "(i32.const 65536) (i32.const 1048576)";
        many(&format!("(drop (call $add (i32.const {map}) (i32.const 96) (i32.const 5) {value}))"))
    };
    let bytes = many(
        "(drop (call $edit (i32.const 1) (i32.const 2147483647) (i32.const 0) (i32.const 65536) (i32.const 1048576)))",
    );
    for (name, callback, body) in [
        ("big-request", "proxy_on_request_headers", field(0)),
        ("big-response", "proxy_on_response_headers", field(2)),
        ("big-body", "proxy_on_response_body", bytes),
    ] {
        let functions = format!(
            "(func (export \"{callback}\") (param i32 i32 i32) (result i32) {}",
            body.replacen("(local $at i32)", &format!("(local $at i32) {fill}"), 1) + ")"
        );
        let beset = Beset::by(name, &functions, "").await;
        beset.runs().await;
        let answer = client::get(beset.proxy.outbound, "orders", "/").await;
        assert_eq!(answer.status, 200, "{name}");
        assert!(answer.body.len() <= 4 << 20, "{name}: {} bytes", answer.body.len());
        let most = beset.proxy.peak_memory();
        assert!(most < 200 << 20, "{name}: {most} bytes");
        beset.serves_others().await;
    }
}
