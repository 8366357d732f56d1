//! Plugins that change under load.

use super::*;

const SWAPS: usize = 100;

#[tokio::test]
async fn plugins_are_swapped_under_load_without_a_failed_request() {
    let orders = Origin::echo("orders").await;
    let mesh = |version: usize| {
        Mesh::default().service("orders", "http", &[orders.address]).yaml(&plugin(
            "probe",
            "orders",
            &format!("pluginConfig: v{version}\n"),
        ))
    };
    let proxy = cached(mesh(0)).start().await;
    until("the plugin to be loaded", async || {
        (client::get(proxy.outbound, "orders", "/").await.status == 200).then_some(())
    })
    .await;
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let callers: Vec<_> = (0..4)
        .map(|_| {
            let (stop, address) = (stop.clone(), proxy.outbound);
            tokio::spawn(async move {
                let mut wire = Wire::connect(address).await;
                let mut count = 0;
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    let request =
                        "GET / HTTP/1.1\r\nHost: orders\r\nx-req-headers: add-req=x-in:1\r\n\r\n";
                    let answer = wire.ask(request).await;
                    assert_eq!(answer.status, 200, "{}", answer.text());
                    assert_eq!(answer.echo()["headers"]["x-in"][0], "1");
                    count += 1;
                }
                count
            })
        })
        .collect();
    for version in 1..=SWAPS {
        proxy.rewrite(mesh(version).text());
        let line = format!("config=\"v{version}\"");
        until(&line, async || proxy.errors().contains(&line).then_some(())).await;
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    for caller in callers {
        assert!(caller.await.expect("no request fails") > 0);
    }
    // All that ran but the last are told that they end; those that only showed that they start are not.
    until("old instances to end", async || {
        let errors = proxy.errors();
        let started = errors.matches("on_configure(1").count() - SWAPS - 1;
        (started > 0 && errors.matches("on_delete(1)").count() == started - 1).then_some(())
    })
    .await;
}
