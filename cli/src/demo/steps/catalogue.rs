//! What product sells, kept by the sidecars of those who ask for it.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use http::Response;
use hyper::body::Bytes;
use serde_json::{Value, json};
use tokio::{task::JoinSet, time::sleep};

use super::{LIVE_LIMIT, LOOK, Voice};
use crate::{
    commands::proxy_config::ask,
    demo::{
        Error,
        mesh::{Mesh, tell},
        narrator::took,
        observation::Customer,
        share::percent,
    },
};

/// Whose sidecar is looked at, and who else reads the catalogue.
const CALLER: &str = "order-1";
const CALLERS: [&str; 2] = [CALLER, "order-2"];
/// What no customer orders: nobody has read it yet.
const COLD: &str = "/products/p5";
const TAG: &str = "product-p5";
const HERD: usize = 50;
const HERD_TRIES: u32 = 5;
const PURGE_LIMIT: &str = "20s";
/// All there is; good for a second.
const LIST: &str = "/products";
const STALE: Duration = Duration::from_millis(1_200);
const POLL: Duration = Duration::from_millis(50);

pub async fn run(mesh: &Mesh, customer: &Customer, narrator: &mut Voice) -> Result<(), Error> {
    narrator.step("The catalogue, kept by the sidecars of its readers")?;
    herd(mesh, narrator).await?;
    spared(mesh, customer, narrator).await?;
    purged(mesh, narrator).await?;
    outage(mesh, customer, narrator).await
}

/// Many want the same at once.
async fn herd(mesh: &Mesh, narrator: &mut Voice) -> Result<(), Error> {
    let mut stampede = all_at_once(mesh).await?;
    for _ in 1..HERD_TRIES {
        if stampede.is_tame() {
            break;
        }
        // On a machine that stands still for seconds the first answer may take longer than the others wait for it.
        let order = json!({"service": "shop/catalogue", "tag": TAG, "timeout": PURGE_LIMIT});
        mesh.client.purge(&order).await?;
        stampede = all_at_once(mesh).await?;
    }
    let Stampede { asked, served, told } = stampede;
    narrator.say(&format!(
        "{HERD} read {COLD} at once through the sidecar of {CALLER}, which does not know it:"
    ))?;
    for (told, count) in told {
        narrator.say(&format!("    {count:>2} ×  Cache-Status: {told}"))?;
    }
    let times = if asked == 1 { "once".to_owned() } else { format!("{asked} times") };
    let what = format!("{served} of {HERD} have their answer, product was asked {times}");
    narrator.check(asked == 1 && served == HERD, &what)?;
    let told = cache_status(&mesh.catalogue(CALLER, COLD)?.await?);
    let what = format!("who comes later does not cost a call at all: {told}");
    narrator.check(is_hit(&told), &what)?;
    Ok(())
}

/// What came of many reading the same at once.
struct Stampede {
    /// How often product was asked.
    asked: u64,
    served: usize,
    /// What caches said, and how often.
    told: BTreeMap<String, usize>,
}

impl Stampede {
    fn is_tame(&self) -> bool {
        self.asked == 1 && self.served == HERD
    }
}

async fn all_at_once(mesh: &Mesh) -> Result<Stampede, Error> {
    let before = mesh.reads().await?.of(COLD);
    let mut readers = JoinSet::new();
    for _ in 0..HERD {
        readers.spawn(mesh.catalogue(CALLER, COLD)?);
    }
    let (mut served, mut told) = (0, BTreeMap::<String, usize>::new());
    while let Some(answer) = readers.join_next().await {
        let answer = answer.map_err(|error| Error::Unexpected(error.to_string()))??;
        served += usize::from(answer.status().is_success());
        *told.entry(cache_status(&answer)).or_default() += 1;
    }
    let asked = mesh.reads().await?.of(COLD) - before;
    Ok(Stampede { asked, served, told })
}

/// What it is worth.
async fn spared(mesh: &Mesh, customer: &Customer, narrator: &mut Voice) -> Result<(), Error> {
    let before = mesh.reads().await?.all();
    let seen = customer.observe(LOOK).await.seen;
    let total = mesh.reads().await?.all();
    let asked = total - before;
    let (cached, all) = (seen.cached, seen.ok);
    narrator.say(&format!(
        "{all} orders look up a price each: {cached} have it from a sidecar, product was asked {asked} times ({total} since it started)"
    ))?;
    for caller in CALLERS {
        let page = ask(&mesh.sidecar(caller)?.admin.to_string(), "/cache?format=json").await?;
        let figure = |name: &str| page.pointer(&format!("/caches/0/{name}"))?.as_f64();
        narrator.say(&format!(
            "    sidecar of {caller}: hit ratio {:.1} % since it started, {} URLs in {:.1} KiB",
            figure("hitRatio").unwrap_or_default() * 100.0,
            figure("urls").unwrap_or_default(),
            figure("bytes").unwrap_or_default() / 1024.0
        ))?;
    }
    let window: Value = serde_json::from_slice(mesh.window().await?.body()).unwrap_or_default();
    let shown = window.get("catalogue").cloned().unwrap_or_default();
    narrator.say(&format!("    the shop window says so, too: \"catalogue\": {shown}"))?;
    let what = format!("{} of the catalogue's load is spared", percent(cached, all));
    narrator.check(cached * 2 > all && asked < all, &what)?;
    Ok(())
}

/// A change is seen at once, although what was kept would be good for a minute.
async fn purged(mesh: &Mesh, narrator: &mut Voice) -> Result<(), Error> {
    let (old, _) = price(&mesh.catalogue(CALLER, COLD)?.await?);
    let new = old + 100_000;
    mesh.set_price(COLD, new).await?;
    let (kept, told) = price(&mesh.catalogue(CALLER, COLD)?.await?);
    narrator.say(&format!("a new price, {old} ▶ {new}; the sidecar still says {kept}: {told}"))?;
    let begun = Instant::now();
    let order = json!({"service": "shop/catalogue", "tag": TAG, "timeout": PURGE_LIMIT});
    let (purged, _) = mesh.client.purge(&order).await?;
    let elapsed = took(begun.elapsed());
    narrator.say(&format!("leno cache purge --service shop/catalogue --tag {TAG}"))?;
    let (confirmed, proxies, removed) = (purged.confirmed, purged.proxies, purged.removed);
    let what = format!(
        "{elapsed} later {confirmed} of {proxies} sidecars have forgotten what they kept of it"
    );
    narrator.check(confirmed == proxies && proxies > 0 && removed > 0, &what)?;
    let (now, told) = price(&mesh.catalogue(CALLER, COLD)?.await?);
    narrator.check(kept == old && now == new, &format!("the next one sees {now}: {told}"))?;
    Ok(())
}

/// What is there to be seen while product fails.
async fn outage(mesh: &Mesh, customer: &Customer, narrator: &mut Voice) -> Result<(), Error> {
    mesh.catalogue(CALLER, LIST)?.await?;
    sleep(STALE).await;
    let product = mesh.app("product-1")?.control;
    tell(product, &json!({"failPercent": 100})).await?;
    let answer = mesh.catalogue(CALLER, LIST)?.await?;
    tell(product, &json!({"failPercent": 0})).await?;
    let (status, told) = (answer.status().as_u16(), cache_status(&answer));
    narrator.say(
        "product-1 fails; what it sells was good for a second, and the policy says `staleIfError: 10m`:",
    )?;
    let held = status == 200 && told.contains("stale-if-error");
    narrator.check(held, &format!("{status}, what was there before the failure: {told}"))?;
    recovered(mesh).await?;
    customer.settle().await;
    Ok(())
}

/// Orders reserve at product: what comes next is to begin with none that fails.
async fn recovered(mesh: &Mesh) -> Result<(), Error> {
    let begun = Instant::now();
    while mesh.order(&[]).await?.0 != 201 {
        if begun.elapsed() > LIVE_LIMIT {
            return Err(Error::Unexpected("product does not recover".to_owned()));
        }
        sleep(POLL).await;
    }
    Ok(())
}

/// What an answer costs, and what caches say of it.
fn price(answer: &Response<Bytes>) -> (u64, String) {
    let body: Option<Value> = serde_json::from_slice(answer.body()).ok();
    let price = body.and_then(|body| body.get("priceCents")?.as_u64());
    (price.unwrap_or_default(), cache_status(answer))
}

fn cache_status(answer: &Response<Bytes>) -> String {
    let values = answer.headers().get_all("cache-status").iter();
    let values: Vec<_> = values.filter_map(|value| value.to_str().ok()).collect();
    values.join(", ")
}

fn is_hit(told: &str) -> bool {
    told.split(';').any(|word| word.trim() == "hit")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read() {
        let answer = |body: &'static str| {
            Response::builder()
                .header("cache-status", "leno; hit; ttl=3")
                .body(Bytes::from_static(body.as_bytes()))
                .unwrap()
        };
        let (cents, told) = price(&answer(r#"{"priceCents": 7}"#));
        assert_eq!((cents, is_hit(&told)), (7, true));
        assert_eq!(price(&answer("no catalogue")).0, 0);
        assert!(!is_hit("leno; fwd=uri-miss; stored"));
    }
}
