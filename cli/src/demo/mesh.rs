//! The processes of the mesh, put together: control plane, services, a sidecar beside each of them.
//!
//! A service and its sidecar need each other's port. The service starts first; `order`, the only one that calls
//! others, is told its sidecar's afterwards, on its control port.
//!
//! Each sidecar gets two files: the root by which it knows the control plane, and a token that is good for one
//! certificate in the name of its service account. It makes its own key, and renews with the certificate itself.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Write},
    net::SocketAddr,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use http::{Request, Response, header::CONTENT_TYPE};
use http_body_util::Full;
use hyper::body::Bytes;
use leno_control_plane::access::{NewToken, Role, TokenFile};
use serde_json::{Value, json};
use tokio::time::sleep;

use super::{
    Error,
    calls::Calls,
    metrics::samples,
    modules::cache,
    process::{Processes, Starting},
};
use crate::{
    api_client::{ApiClient, ServerArgs},
    commands::proxy_config::ask,
    http_client::HttpClient,
};

pub const NAMESPACE: &str = "shop";
/// The sidecar through which the orders come in, and its service account.
pub const CUSTOMER: &str = "customer";
/// The face of product that caches may keep.
const CATALOGUE: &str = "catalogue";
const PRODUCT: &str = "product-1";
const CONTROL_PLANE: &str = "control-plane";
const ANY: &str = "127.0.0.1:0";
/// In milliseconds: a machine that is busy otherwise must not look like a service that fails.
const CALL_TIMEOUT: &str = "20000";

/// One instance of one service.
#[derive(Debug)]
pub struct Plan {
    pub instance: &'static str,
    /// What the shop's program is told to be, and the service account under which it is known.
    pub program: &'static str,
    /// The mesh's name for what it serves.
    pub service: &'static str,
    pub version: &'static str,
    /// Name of the service port.
    pub port: &'static str,
    /// Another service and its port, by which the same application can be reached.
    pub also: Option<(&'static str, &'static str)>,
}

pub const PLANS: [Plan; 6] = [
    plan("order-1", "order", "order", "v1", "http"),
    plan("order-2", "order", "order", "v1", "http"),
    plan("order-v2-1", "order", "order-v2", "v2", "http"),
    plan("user-1", "user", "user", "v1", "http"),
    Plan {
        also: Some((CATALOGUE, "http")),
        ..plan("product-1", "product", "product", "v1", "grpc")
    },
    plan("notification-1", "notification", "notification", "v1", "tcp"),
];

const fn plan(
    instance: &'static str,
    program: &'static str,
    service: &'static str,
    version: &'static str,
    port: &'static str,
) -> Plan {
    Plan { instance, program, service, version, port, also: None }
}

/// A running instance of the shop.
#[derive(Debug)]
pub struct App {
    pub plan: &'static Plan,
    pub listen: SocketAddr,
    pub control: SocketAddr,
}

/// A running sidecar.
#[derive(Debug)]
pub struct Sidecar {
    /// Of the instance beside which it stands.
    pub name: &'static str,
    pub account: &'static str,
    pub outbound: SocketAddr,
    pub inbound: SocketAddr,
    pub admin: SocketAddr,
}

/// Everything that runs.
pub struct Mesh {
    pub api: SocketAddr,
    xds: SocketAddr,
    pub client: ApiClient,
    /// The file with the roots that are trusted, which the control plane keeps current.
    pub roots: PathBuf,
    pub apps: Vec<App>,
    /// In the order of `apps`, then the customer's.
    pub sidecars: Vec<Sidecar>,
    pub customer: SocketAddr,
    pub customer_admin: SocketAddr,
}

/// A control plane that runs.
pub struct ControlPlane {
    pub api: SocketAddr,
    xds: SocketAddr,
    pub client: ApiClient,
    data: PathBuf,
    roots: PathBuf,
}

pub async fn start_control_plane(
    processes: &mut Processes,
    directory: &Path,
) -> Result<ControlPlane, Error> {
    run_control_plane(processes, directory, CONTROL_PLANE, ANY, ANY).await
}

/// Kills the control plane and starts another one, with what the first has stored, `after` a while.
pub async fn replace_control_plane(
    processes: &mut Processes,
    directory: &Path,
    mesh: &Mesh,
    after: Duration,
) -> Result<(), Error> {
    processes.crash(CONTROL_PLANE)?;
    sleep(after).await;
    let (api, xds) = (mesh.api.to_string(), mesh.xds.to_string());
    run_control_plane(processes, directory, "control-plane-again", &api, &xds).await.map(drop)
}

async fn run_control_plane(
    processes: &mut Processes,
    directory: &Path,
    name: &str,
    api: &str,
    xds: &str,
) -> Result<ControlPlane, Error> {
    let data = directory.join("control-plane");
    let path = data.display().to_string();
    let arguments =
        ["control-plane", "--data-dir", &path, "--api", api, "--xds", xds, "--metrics", ANY];
    let starting = processes.spawn(name, &owned(&arguments))?;
    let announced = processes.announced(starting).await?;
    let (api, xds) = (announced.address("api")?, announced.address("xds")?);
    let roots = data.join("root.pem");
    let client = ApiClient::new(&ServerArgs {
        server: format!("https://{api}"),
        ca_file: Some(roots.clone()),
        token_file: None,
    })?;
    Ok(ControlPlane { api, xds, client, data, roots })
}

pub async fn start_shop(
    processes: &mut Processes,
    directory: &Path,
    control_plane: ControlPlane,
) -> Result<Mesh, Error> {
    let apps = start_apps(processes).await?;
    let sidecars = start_sidecars(processes, directory, &control_plane, &apps).await?;
    for (app, sidecar) in apps.iter().zip(&sidecars) {
        if app.plan.program == "order" {
            tell(app.control, &json!({"mesh": sidecar.outbound.to_string()})).await?;
        }
    }
    let Some(customer) = sidecars.last() else {
        return Err(Error::Unexpected("there is no sidecar for the customer".to_owned()));
    };
    let (outbound, admin) = (customer.outbound, customer.admin);
    Ok(Mesh {
        api: control_plane.api,
        xds: control_plane.xds,
        client: control_plane.client,
        roots: control_plane.roots,
        apps,
        sidecars,
        customer: outbound,
        customer_admin: admin,
    })
}

async fn start_apps(processes: &mut Processes) -> Result<Vec<App>, Error> {
    let mut starting: Vec<(&Plan, Starting)> = Vec::new();
    for plan in &PLANS {
        let mut arguments = vec!["shop", plan.program, "--instance", plan.instance];
        arguments.extend(["--version", plan.version, "--listen", ANY, "--control", ANY]);
        if plan.program == "order" {
            arguments.extend(["--await-mesh", "--call-timeout-ms", CALL_TIMEOUT]);
        }
        starting.push((plan, processes.spawn(plan.instance, &owned(&arguments))?));
    }
    let mut apps = Vec::new();
    for (plan, starting) in starting {
        let announced = processes.announced(starting).await?;
        let (listen, control) = (announced.address("listen")?, announced.address("control")?);
        apps.push(App { plan, listen, control });
    }
    Ok(apps)
}

async fn start_sidecars(
    processes: &mut Processes,
    directory: &Path,
    control_plane: &ControlPlane,
    apps: &[App],
) -> Result<Vec<Sidecar>, Error> {
    let mut starting = Vec::new();
    for app in apps {
        let (name, account) = (app.plan.instance, app.plan.program);
        let mut arguments = sidecar_arguments(directory, control_plane, name, account)?;
        let port = format!("{}={}", app.plan.port, app.listen.port());
        let version = format!("version={}", app.plan.version);
        let own = ["--service", app.plan.service, "--app", &port, "--label", &version];
        arguments.extend(owned(&own));
        if let Some((service, port)) = app.plan.also {
            let port = format!("{port}={}", app.listen.port());
            arguments.extend(owned(&["--service", service, "--app", &port]));
        }
        let process = processes.spawn(&format!("{name}-sidecar"), &arguments)?;
        starting.push((name, account, process));
    }
    let arguments = sidecar_arguments(directory, control_plane, CUSTOMER, CUSTOMER)?;
    let process = processes.spawn("customer-sidecar", &arguments)?;
    starting.push((CUSTOMER, CUSTOMER, process));
    let mut sidecars = Vec::new();
    for (name, account, process) in starting {
        let announced = processes.announced(process).await?;
        sidecars.push(Sidecar {
            name,
            account,
            outbound: announced.address("outbound")?,
            inbound: announced.address("inbound")?,
            admin: announced.address("admin")?,
        });
    }
    Ok(sidecars)
}

fn sidecar_arguments(
    directory: &Path,
    control_plane: &ControlPlane,
    name: &str,
    account: &str,
) -> Result<Vec<String>, Error> {
    let state = directory.join(format!("{name}-sidecar")).display().to_string();
    let token = join_token(directory, &control_plane.data, name, account)?.display().to_string();
    let roots = control_plane.roots.display().to_string();
    let xds = control_plane.xds.to_string();
    let mut arguments = owned(&["proxy", "--control-plane", &xds, "--ca-file", &roots]);
    arguments.extend(owned(&["--token-file", &token, "--service-account", account]));
    arguments.extend(owned(&["--outbound", ANY, "--inbound", ANY, "--admin", ANY]));
    arguments.extend(owned(&["--state-dir", &state, "--workers", "1"]));
    arguments.extend(owned(&["--module-cache", &cache(directory).display().to_string()]));
    arguments.extend(owned(&["--name", name, "--namespace", NAMESPACE]));
    Ok(arguments)
}

/// What `leno token create NAME --role workload -n shop --service-account ACCOUNT --once` prints, in a file.
fn join_token(directory: &Path, data: &Path, name: &str, account: &str) -> Result<PathBuf, Error> {
    let failed = |error: &dyn std::fmt::Display| Error::Unexpected(format!("no token: {error}"));
    let tokens = TokenFile::open(data).map_err(|error| failed(&error))?;
    let token = NewToken {
        name,
        role: Role::Workload,
        namespace: Some(NAMESPACE),
        service_account: Some(account),
        expires: None,
        once: true,
    };
    let token = tokens.issue(token).map_err(|error| failed(&error))?;
    let path = directory.join(format!("{name}.token"));
    write_secret(&path, &token).map_err(|error| failed(&error))?;
    Ok(path)
}

fn write_secret(path: &Path, secret: &str) -> io::Result<()> {
    let mut options = fs::OpenOptions::new();
    options.write(true).create_new(true).mode(0o600).open(path)?.write_all(secret.as_bytes())
}

fn owned(arguments: &[&str]) -> Vec<String> {
    arguments.iter().map(ToString::to_string).collect()
}

/// Of the catalogue, by path.
#[derive(Debug, serde::Deserialize)]
pub struct Reads(BTreeMap<String, u64>);

impl Reads {
    pub fn of(&self, path: &str) -> u64 {
        self.0.get(path).copied().unwrap_or_default()
    }

    pub fn all(&self) -> u64 {
        self.0.values().sum()
    }
}

impl Mesh {
    pub fn app(&self, instance: &str) -> Result<&App, Error> {
        let found = self.apps.iter().find(|app| app.plan.instance == instance);
        found.ok_or_else(|| Error::Unexpected(format!("there is no instance {instance}")))
    }

    /// The sidecar beside an instance.
    pub fn sidecar(&self, instance: &str) -> Result<&Sidecar, Error> {
        let found = self.sidecars.iter().find(|sidecar| sidecar.name == instance);
        found.ok_or_else(|| Error::Unexpected(format!("there is no sidecar of {instance}")))
    }

    /// What all callers' sidecars have counted until now.
    pub async fn calls(&self) -> Result<Calls, Error> {
        let mut calls = Calls::default();
        for sidecar in &self.sidecars {
            calls.add(&samples(&text(sidecar.admin, "/stats/prometheus").await?));
        }
        Ok(calls)
    }

    /// The customer's sidecar's configuration.
    pub async fn customer_config(&self) -> Result<Value, Error> {
        Ok(ask(&self.customer_admin.to_string(), "/config_dump").await?)
    }

    /// Waits until the customer's sidecar has a configuration in which `holds`; how long that took from `since`.
    pub async fn live(
        &self,
        since: Instant,
        limit: Duration,
        holds: impl Fn(&Value) -> bool,
    ) -> Result<Duration, Error> {
        const POLL: Duration = Duration::from_micros(500);
        loop {
            if holds(&self.customer_config().await?) {
                return Ok(since.elapsed());
            }
            if since.elapsed() > limit {
                let message =
                    format!("the change did not reach the customer's sidecar within {limit:?}");
                return Err(Error::Unexpected(message));
            }
            sleep(POLL).await;
        }
    }

    /// Places one order, as a customer whose request has `headers`; the status of the answer and its body.
    pub async fn order(&self, headers: &[(&str, &str)]) -> Result<(u16, String), Error> {
        let answer = self.answer(headers).await?;
        Ok((answer.status().as_u16(), String::from_utf8_lossy(answer.body()).into_owned()))
    }

    /// The same; the whole answer.
    pub fn answer(
        &self,
        headers: &[(&str, &str)],
    ) -> impl Future<Output = Result<Response<Bytes>, Error>> + Send + use<> {
        let basket = json!({"user": "u1", "items": [{"product": "p1", "quantity": 1}]});
        let mut request = Request::post("/orders").header(CONTENT_TYPE, "application/json");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(basket.to_string().into()));
        let customer = self.customer.to_string();
        async move {
            let request = request.map_err(|error| Error::Unexpected(error.to_string()))?;
            Ok(HttpClient::new(&customer)?.send_for("order", request).await?)
        }
    }

    /// What the catalogue answers to an instance of order.
    pub fn catalogue(
        &self,
        caller: &str,
        path: &str,
    ) -> Result<impl Future<Output = Result<Response<Bytes>, Error>> + Send + use<>, Error> {
        read(self.sidecar(caller)?.outbound, CATALOGUE, path)
    }

    /// What customers see of the catalogue: an instance of order shows it.
    pub async fn window(&self) -> Result<Response<Bytes>, Error> {
        read(self.customer, "order", "/products")?.await
    }

    /// How often product itself was asked for what it sells.
    pub async fn reads(&self) -> Result<Reads, Error> {
        let text = text(self.app(PRODUCT)?.control, "/reads").await?;
        serde_json::from_str(&text)
            .map_err(|error| Error::Unexpected(format!("product counts {text}: {error}")))
    }

    /// Tells product, past the mesh, what something costs from now on.
    pub async fn set_price(&self, path: &str, cents: u64) -> Result<(), Error> {
        let request = Request::put(path)
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(json!({"priceCents": cents}).to_string().into()))
            .map_err(|error| Error::Unexpected(error.to_string()))?;
        let answer = HttpClient::new(&self.app(PRODUCT)?.listen.to_string())?.send(request).await?;
        match answer.status().is_success() {
            true => Ok(()),
            false => Err(Error::Unexpected(format!("product does not take {cents} for {path}"))),
        }
    }

    /// What user answers to an instance of order about `u1`.
    pub async fn user(&self, caller: &str) -> Result<String, Error> {
        let answer = read(self.sidecar(caller)?.outbound, "user", "/users/u1")?.await?;
        Ok(String::from_utf8_lossy(answer.body()).into_owned())
    }
}

/// What a service answers through the sidecar with that outbound port.
fn read(
    outbound: SocketAddr,
    host: &'static str,
    path: &str,
) -> Result<impl Future<Output = Result<Response<Bytes>, Error>> + Send + use<>, Error> {
    let client = HttpClient::new(&outbound.to_string())?;
    let request = Request::get(path).body(Full::default());
    let request = request.map_err(|error| Error::Unexpected(error.to_string()))?;
    Ok(async move { Ok(client.send_for(host, request).await?) })
}

/// Tells an instance of the shop how to behave.
pub async fn tell(control: SocketAddr, change: &Value) -> Result<(), Error> {
    let request = Request::post("/")
        .header(CONTENT_TYPE, "application/json")
        .body(Full::new(change.to_string().into()))
        .map_err(|error| Error::Unexpected(error.to_string()))?;
    let answer = HttpClient::new(&control.to_string())?.send(request).await?;
    match answer.status().is_success() {
        true => Ok(()),
        false => Err(Error::Unexpected(format!(
            "the instance at {control} does not want to {change}: {}",
            String::from_utf8_lossy(answer.body())
        ))),
    }
}

/// What a port answers, as text.
pub async fn text(server: SocketAddr, path: &str) -> Result<String, Error> {
    let request = Request::get(path)
        .body(Full::default())
        .map_err(|error| Error::Unexpected(error.to_string()))?;
    let answer = HttpClient::new(&server.to_string())?.send(request).await?;
    match answer.status().is_success() {
        true => Ok(String::from_utf8_lossy(answer.body()).into_owned()),
        false => Err(Error::Unexpected(format!("{server}{path} answered {}", answer.status()))),
    }
}
