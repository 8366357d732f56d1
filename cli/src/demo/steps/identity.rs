//! Who is who, who may call whom, and how certificates and the root are replaced while orders go on.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use comfy_table::presets;
use http::Request;
use http_body_util::Full;
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{sleep, timeout},
};

use super::{Voice, check_no_failure};
use crate::{
    commands::{
        ca::{rotation, short},
        proxy_config::{ask, certs},
    },
    demo::{
        Error,
        mesh::{Mesh, NAMESPACE, Sidecar, text},
        metrics::{Sample, samples},
        narrator::took,
        observation::{Customer, Observation},
    },
    http_client::HttpClient,
    moments::{distance, now},
    table::plain,
};

/// A sidecar has its first certificate within milliseconds of its start, unless the machine is busy.
const FIRST_LIMIT: Duration = Duration::from_mins(1);
const POLL: Duration = Duration::from_millis(20);
/// New certificates for each sidecar. The authority gives each ten at once, then one a second; the new root needs one.
const ROUNDS: usize = 8;
/// Between two of them, so that each meets traffic.
const PAUSE: Duration = Duration::from_millis(100);
/// Three steps, each of which waits for every sidecar.
const ROTATION_LIMIT: Duration = Duration::from_mins(2);
/// To hang up on somebody who shows no certificate.
const HANG_UP_LIMIT: Duration = Duration::from_mins(1);
/// What a sidecar counts of those it turns away, by policy.
const DENIED: &str = "leno_authorization_denied_total";
const REQUESTS: &str = "istio_requests_total";

/// Shows who has which certificate, and that nobody else gets through.
pub async fn prove(mesh: &Mesh, narrator: &mut Voice) -> Result<(), Error> {
    narrator.step("Every sidecar proves who it is, and decides who may call")?;
    let shown = certificates(mesh).await?;
    narrator.show(&table(&shown))?;
    let own =
        shown.iter().filter(|(sidecar, certs)| field(certs, "id") == identity(sidecar)).count();
    let all = mesh.sidecars.len();
    let what =
        format!("{own} of {all} have a certificate of their own, for a key that never left them");
    narrator.check(own == all, &what)?;
    check_encryption(mesh, narrator).await?;
    check_policy(mesh, narrator).await?;
    check_plain_text(mesh, narrator).await
}

/// Every sidecar's certificate, once all have one.
async fn certificates(mesh: &Mesh) -> Result<Vec<(&Sidecar, Value)>, Error> {
    let begun = Instant::now();
    let mut shown = Vec::new();
    for sidecar in &mesh.sidecars {
        loop {
            let certs = ask(&sidecar.admin.to_string(), certs::PATH).await?;
            if certs.get("id").is_some_and(Value::is_string) {
                shown.push((sidecar, certs));
                break;
            }
            if begun.elapsed() > FIRST_LIMIT {
                let reason = field(&certs, "last_error");
                let name = sidecar.name;
                return Err(Error::Unexpected(format!(
                    "{name}'s sidecar has no certificate: {reason}"
                )));
            }
            sleep(POLL).await;
        }
    }
    Ok(shown)
}

fn table(shown: &[(&Sidecar, Value)]) -> String {
    let mut table = plain(presets::UTF8_FULL_CONDENSED);
    table.set_header(["sidecar of", "is known as", "serial", "ends"]);
    let now = now();
    for (sidecar, certs) in shown {
        let ends = certs::moment(certs, "not_after").map(|end| distance(end, now));
        table.add_row([
            sidecar.name.to_owned(),
            field(certs, "id").to_owned(),
            short(field(certs, "serial")),
            ends.unwrap_or_default(),
        ]);
    }
    table.to_string()
}

fn identity(sidecar: &Sidecar) -> String {
    format!("spiffe://cluster.local/ns/{NAMESPACE}/sa/{}", sidecar.account)
}

/// What the callers' sidecars counted of the requests that went from one sidecar to another.
async fn check_encryption(mesh: &Mesh, narrator: &mut Voice) -> Result<(), Error> {
    let (mut proven, mut all) = (0.0, 0.0);
    for sidecar in &mesh.sidecars {
        let counted = samples(&text(sidecar.admin, "/stats/prometheus").await?);
        let received =
            |sample: &&Sample| sample.name == REQUESTS && sample.label("reporter") == "destination";
        for sample in counted.iter().filter(received) {
            all += sample.value;
            if sample.label("connection_security_policy") == "mutual_tls" {
                proven += sample.value;
            }
        }
    }
    let what = format!("{proven:.0} of {all:.0} requests between sidecars came over mutual TLS");
    narrator.check(proven >= all && all > 0.0, &what)?;
    Ok(())
}

/// A customer asks user, whom only order may ask.
async fn check_policy(mesh: &Mesh, narrator: &mut Voice) -> Result<(), Error> {
    let denied = async || -> Result<f64, Error> {
        let user = sidecar(mesh, "user-1")?;
        let counted = samples(&text(user.admin, "/stats/prometheus").await?);
        let own = counted.iter().filter(|sample| sample.name == DENIED);
        Ok(own
            .filter(|sample| sample.label("policy") == "shop/user")
            .map(|sample| sample.value)
            .sum())
    };
    let before = denied().await?;
    let request = Request::get("/users/u1").body(Full::default());
    let request = request.map_err(|error| Error::Unexpected(error.to_string()))?;
    let answer = HttpClient::new(&mesh.customer.to_string())?.send_for("user", request).await?;
    let status = answer.status().as_u16();
    narrator.check(
        status == 403,
        &format!("a customer who asks user is answered {status}, only order may"),
    )?;
    // Workers hand in what they count from time to time.
    let begun = Instant::now();
    let mut after = denied().await? - before;
    while after < 1.0 && begun.elapsed() < super::LIVE_LIMIT {
        sleep(POLL).await;
        after = denied().await? - before;
    }
    let what = format!(
        "user's sidecar says by which policy: {DENIED}{{policy=\"shop/user\"}} +{after:.0}"
    );
    narrator.check(after >= 1.0, &what)?;
    Ok(())
}

/// A request in plain text, past the caller's own sidecar.
async fn check_plain_text(mesh: &Mesh, narrator: &mut Voice) -> Result<(), Error> {
    let inbound = sidecar(mesh, "user-1")?.inbound;
    let answer = timeout(HANG_UP_LIMIT, async {
        let mut stream = TcpStream::connect(inbound).await?;
        stream.write_all(b"GET /users/u1 HTTP/1.1\r\nhost: user\r\n\r\n").await?;
        let mut answer = Vec::new();
        // A reset is as good an end as any.
        let _ = stream.read_to_end(&mut answer).await;
        Ok::<_, std::io::Error>(answer)
    });
    let what = match answer.await {
        Ok(Ok(answer)) if answer.is_empty() => {
            return Ok(narrator.check(
                true,
                "plain text at its inbound port gets no answer but the end of the connection",
            )?);
        }
        Ok(Ok(answer)) => format!("plain text is answered: {}", String::from_utf8_lossy(&answer)),
        Ok(Err(error)) => format!("plain text cannot be sent: {error}"),
        Err(_) => format!("plain text is kept waiting for {HANG_UP_LIMIT:?}"),
    };
    narrator.check(false, &what)?;
    Ok(())
}

/// New certificates for everybody, then a new root.
pub async fn replace(mesh: &Mesh, customer: &Customer, narrator: &mut Voice) -> Result<(), Error> {
    narrator.step("Certificates and their root are replaced while orders go on")?;
    let before = customer.snapshot();
    let begun = Instant::now();
    renew(mesh, narrator).await?;
    rotate(mesh, narrator).await?;
    // Orders that were under way belong to what was done.
    customer.settle().await;
    let seen = Observation { seen: customer.snapshot().since(&before), lasted: begun.elapsed() };
    check_no_failure(narrator, &seen, " meanwhile")
}

async fn renew(mesh: &Mesh, narrator: &mut Voice) -> Result<(), Error> {
    let begun = Instant::now();
    let mut serials = BTreeSet::new();
    for _ in 0..ROUNDS {
        // One after the other in a sidecar, all sidecars at once.
        let mut renewals = tokio::task::JoinSet::new();
        for sidecar in &mesh.sidecars {
            let admin = sidecar.admin.to_string();
            renewals.spawn(async move { certs::renew(&admin).await });
        }
        for renewed in renewals.join_all().await {
            serials.insert(field(&renewed?, "serial").to_owned());
        }
        sleep(PAUSE).await;
    }
    let (count, wanted) = (serials.len(), ROUNDS * mesh.sidecars.len());
    let what = format!(
        "{count} new certificates, {ROUNDS} for each sidecar, in {}",
        took(begun.elapsed())
    );
    narrator.check(count == wanted, &what)?;
    Ok(())
}

async fn rotate(mesh: &Mesh, narrator: &mut Voice) -> Result<(), Error> {
    narrator.say("leno ca rotate-root")?;
    let old = mesh.client.ca_status().await?;
    let begun = Instant::now();
    let tell = |line: &str| narrator.say(&format!("    {line}"));
    let rotation = timeout(ROTATION_LIMIT, rotation::replace_root(&mesh.client, tell)).await;
    let new = rotation.map_err(|_| {
        Error::Unexpected(format!("the root was not replaced within {ROTATION_LIMIT:?}"))
    })??;
    let signer = |status: &crate::api_client::authority::Status| {
        status.signer().map(|root| root.fingerprint.clone()).unwrap_or_default()
    };
    let (old, new) = (signer(&old), signer(&new));
    let trusting = trusting_only(mesh, &new).await?;
    let all = mesh.sidecars.len();
    let what = format!(
        "{trusting} of {all} sidecars trust the new root and no other, after {}",
        took(begun.elapsed())
    );
    narrator.check(trusting == all && old != new, &what)?;
    Ok(())
}

/// How many sidecars trust that root alone, once all do or long should.
async fn trusting_only(mesh: &Mesh, root: &str) -> Result<usize, Error> {
    let begun = Instant::now();
    loop {
        let mut count = 0;
        for (_, certs) in certificates(mesh).await? {
            let roots = certs.get("roots").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
            count += usize::from(matches!(roots, [only] if field(only, "fingerprint") == root));
        }
        if count == mesh.sidecars.len() || begun.elapsed() > super::LIVE_LIMIT {
            return Ok(count);
        }
        sleep(POLL).await;
    }
}

fn sidecar<'a>(mesh: &'a Mesh, name: &str) -> Result<&'a Sidecar, Error> {
    let found = mesh.sidecars.iter().find(|sidecar| sidecar.name == name);
    found.ok_or_else(|| Error::Unexpected(format!("there is no sidecar of {name}")))
}

fn field<'a>(value: &'a Value, name: &str) -> &'a str {
    value.get(name).and_then(Value::as_str).unwrap_or_default()
}
