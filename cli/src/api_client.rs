//! The control plane's HTTP API, as its users see it: the dialect of Kubernetes.
//!
//! `answer.rs` reads what comes back: objects, warnings, refusals · `watch.rs` follows changes · `authority.rs` is
//! about certificates, `cache.rs` about what sidecars keep of responses.

use std::{collections::BTreeMap, fs, io, path::PathBuf};

use http::{
    Method, Request, StatusCode,
    header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE},
};
use http_body_util::Full;
use hyper::body::Bytes;
use leno_api::{KindInfo, model::ObjectName};
use serde_json::Value;

use crate::http_client::{self, HttpClient, Trust, TrustError};

mod answer;
pub mod authority;
pub mod cache;
mod watch;

pub use answer::{Answer, Refusal};
pub use watch::Watch;

/// Under which name the fields that this program sets are owned (server-side apply).
const FIELD_MANAGER: &str = "leno";
const JSON: &str = "application/json";
/// JSON is YAML, so that is what is sent under this name.
const APPLY_PATCH: &str = "application/apply-patch+yaml";
const APPLY_MANY: &str = "/apis/leno.dev/v1alpha1/apply";
/// Resources asked for at once; a list comes in as many parts as it needs.
const PAGE: usize = 500;

/// Where the control plane is and who is asking.
#[derive(Clone, Debug, clap::Args)]
pub struct ServerArgs {
    /// The API of the control plane
    #[arg(long, value_name = "URL", env = "LENO_SERVER", default_value = "http://127.0.0.1:15010")]
    pub server: String,

    /// For https://: the certificates that may vouch for the control plane, root.pem in its data directory
    #[arg(long, value_name = "FILE", env = "LENO_CA_FILE")]
    pub ca_file: Option<PathBuf>,

    /// A file that holds a bearer token
    #[arg(long, value_name = "FILE", env = "LENO_TOKEN_FILE")]
    pub token_file: Option<PathBuf>,
}

/// How to apply.
#[derive(Clone, Copy, Debug, Default)]
pub struct ApplyOptions {
    /// Only say what would happen.
    pub dry_run: bool,
    /// Take over fields that somebody else has set.
    pub force: bool,
}

/// Asks one control plane.
#[derive(Clone, Debug)]
pub struct ApiClient {
    http: HttpClient,
    token: Option<String>,
}

/// A list as it was at one revision of the store.
#[derive(Debug, Default)]
pub struct List {
    pub items: Vec<Value>,
    pub resource_version: String,
}

/// What became of one of many resources.
#[derive(Debug, serde::Deserialize)]
pub struct Applied {
    /// `created`, `configured` or `unchanged`.
    pub outcome: String,
    #[serde(default)]
    pub warnings: Vec<String>,
}

/// Why the control plane did not do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "cannot reach the control plane at {server}: {reason}; is `leno control-plane` running? set --server"
    )]
    Unreachable { server: String, reason: String },
    #[error("the control plane at {server} did not do its part: {source}{}", hint(server, source))]
    Http { server: String, source: http_client::Error },
    #[error(transparent)]
    Server(http_client::Error),
    #[error(transparent)]
    Trust(#[from] TrustError),
    #[error("{0}")]
    Refused(Refusal),
    #[error("what answers at {server} does not speak as a control plane does: {reason}")]
    Unreadable { server: String, reason: String },
    #[error("the token in {} cannot be read: {source}", file.display())]
    Token { file: PathBuf, source: io::Error },
    #[error("{what} cannot be sent: {reason}")]
    Unsendable { what: &'static str, reason: String },
}

impl Error {
    /// Whether asking for the next resource makes sense after this one failed so.
    pub fn is_about_one_resource(&self) -> bool {
        match self {
            Self::Refused(refusal) => !matches!(refusal.code, 401 | 503),
            _ => false,
        }
    }
}

impl ApiClient {
    pub fn new(args: &ServerArgs) -> Result<Self, Error> {
        // Roots that nobody asks for need not be there: they may come from the environment.
        let roots = args.ca_file.as_deref().filter(|_| args.server.starts_with("https://"));
        let trust = roots.map(Trust::load).transpose()?;
        let http = HttpClient::with_trust(&args.server, trust).map_err(Error::Server)?;
        let token = match &args.token_file {
            None => None,
            Some(file) => {
                let token = fs::read_to_string(file)
                    .map_err(|source| Error::Token { file: file.clone(), source })?;
                Some(token.trim().to_owned())
            }
        };
        Ok(Self { http, token })
    }

    /// The object, or `None` when there is none of that name.
    pub async fn get(&self, kind: &KindInfo, name: &ObjectName) -> Result<Option<Value>, Error> {
        let answer = self.ask(Method::GET, &object_path(kind, name), None).await;
        match answer {
            Ok(answer) => Ok(Some(answer.object)),
            Err(Error::Refused(refusal)) if refusal.is_missing_object() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// All objects of a kind, in one namespace or in all of them.
    pub async fn list(&self, kind: &KindInfo, namespace: Option<&str>) -> Result<List, Error> {
        let mut list = List::default();
        let mut next = String::new();
        loop {
            let path = collection_path(kind, namespace);
            let query = match next.is_empty() {
                true => format!("{path}?limit={PAGE}"),
                false => format!("{path}?limit={PAGE}&continue={next}"),
            };
            let mut page = self.ask(Method::GET, &query, None).await?.object;
            let metadata = |field: &str| {
                let found = page.pointer(&format!("/metadata/{field}")).and_then(Value::as_str);
                found.unwrap_or_default().to_owned()
            };
            list.resource_version = metadata("resourceVersion");
            next = percent_encoded(&metadata("continue"));
            let Some(Value::Array(items)) = page.get_mut("items").map(Value::take) else {
                return Err(self.unreadable("the list has no items"));
            };
            // Items of a list do not say again what they are; printed alone they should.
            list.items.extend(items.into_iter().map(|item| with_type(kind, item)));
            if next.is_empty() {
                return Ok(list);
            }
        }
    }

    /// Makes the object what `body` says, as far as `body` says something (server-side apply).
    pub async fn apply(
        &self,
        kind: &KindInfo,
        name: &ObjectName,
        body: &Value,
        options: ApplyOptions,
    ) -> Result<Answer, Error> {
        let query = apply_query(options);
        let path = format!("{}?{query}", object_path(kind, name));
        self.ask(Method::PATCH, &path, Some((APPLY_PATCH, body))).await
    }

    /// Applies all of `bodies`, or none of them; what became of each, in their order.
    pub async fn apply_atomically(
        &self,
        bodies: Vec<Value>,
        options: ApplyOptions,
    ) -> Result<Vec<Applied>, Error> {
        let path = format!("{APPLY_MANY}?atomic=true&{}", apply_query(options));
        let count = bodies.len();
        let mut answer = self.ask(Method::POST, &path, Some((JSON, &Value::Array(bodies)))).await?;
        let results = answer.object.get_mut("results").map(Value::take).unwrap_or_default();
        let results: Vec<Applied> =
            serde_json::from_value(results).map_err(|error| self.unreadable(&error.to_string()))?;
        match results.len() == count {
            true => Ok(results),
            false => Err(self.unreadable("it does not tell what became of each resource")),
        }
    }

    /// Whether there was something to delete.
    pub async fn delete(
        &self,
        kind: &KindInfo,
        name: &ObjectName,
        dry_run: bool,
    ) -> Result<bool, Error> {
        let query = if dry_run { "?dryRun=All" } else { "" };
        let path = format!("{}{query}", object_path(kind, name));
        match self.ask(Method::DELETE, &path, None).await {
            Ok(_) => Ok(true),
            Err(Error::Refused(refusal)) if refusal.is_missing_object() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Every change after `resource_version`.
    pub async fn watch(
        &self,
        kind: &KindInfo,
        namespace: Option<&str>,
        resource_version: &str,
    ) -> Result<Watch, Error> {
        let version = percent_encoded(resource_version);
        let path = collection_path(kind, namespace);
        let path = format!("{path}?watch=true&resourceVersion={version}&allowWatchBookmarks=true");
        let request = self.request(Method::GET, &path, None)?;
        let answer = self.http.open(request).await.map_err(|error| self.failed(error))?;
        if answer.status() != StatusCode::OK {
            let reason = format!("a watch was answered with {}", answer.status());
            return Err(self.unreadable(&reason));
        }
        Ok(Watch::new(self.server(), answer.into_body()))
    }

    async fn ask(
        &self,
        method: Method,
        path: &str,
        body: Option<(&str, &Value)>,
    ) -> Result<Answer, Error> {
        let request = self.request(method, path, body)?;
        let response = self.http.send(request).await.map_err(|error| self.failed(error))?;
        Answer::read(&self.server(), &response)
    }

    fn request(
        &self,
        method: Method,
        path: &str,
        body: Option<(&str, &Value)>,
    ) -> Result<Request<Full<Bytes>>, Error> {
        let mut request = Request::builder().method(method).uri(path).header(ACCEPT, JSON);
        if let Some(token) = &self.token {
            request = request.header(AUTHORIZATION, format!("Bearer {token}"));
        }
        let mut bytes = Bytes::new();
        if let Some((content_type, body)) = body {
            request = request.header(CONTENT_TYPE, content_type);
            bytes = body.to_string().into();
        }
        request
            .body(Full::new(bytes))
            .map_err(|error| Error::Unsendable { what: "the request", reason: error.to_string() })
    }

    /// Where the control plane is: `https://host:port`.
    pub fn server(&self) -> String {
        self.http.url()
    }

    fn failed(&self, error: http_client::Error) -> Error {
        if error.is_unreachable() {
            let text = error.to_string();
            let reason = text.rsplit_once(": ").map_or(text.as_str(), |(_, reason)| reason);
            return Error::Unreachable { server: self.server(), reason: reason.to_owned() };
        }
        match error {
            http_client::Error::Untrusted { .. } | http_client::Error::TokenInClear { .. } => {
                Error::Server(error)
            }
            _ => Error::Http { server: self.server(), source: error },
        }
    }

    fn unreadable(&self, reason: &str) -> Error {
        Error::Unreadable { server: self.server(), reason: reason.to_owned() }
    }
}

/// A port that takes TLS only hangs up on anything else.
fn hint(server: &str, error: &http_client::Error) -> &'static str {
    match error {
        http_client::Error::Broken { .. } if server.starts_with("http://") => {
            "; if it takes TLS only, set --server https://... and --ca-file"
        }
        _ => "",
    }
}

fn apply_query(options: ApplyOptions) -> String {
    let mut query = BTreeMap::from([("fieldManager", FIELD_MANAGER)]);
    if options.dry_run {
        query.insert("dryRun", "All");
    }
    if options.force {
        query.insert("force", "true");
    }
    let pairs: Vec<_> = query.iter().map(|(key, value)| format!("{key}={value}")).collect();
    pairs.join("&")
}

fn collection_path(kind: &KindInfo, namespace: Option<&str>) -> String {
    let version = kind.api_version();
    match namespace {
        Some(namespace) => {
            let namespace = percent_encoded(namespace);
            format!("/apis/{version}/namespaces/{namespace}/{}", kind.plural)
        }
        None => format!("/apis/{version}/{}", kind.plural),
    }
}

fn object_path(kind: &KindInfo, name: &ObjectName) -> String {
    let collection = collection_path(kind, Some(&name.namespace));
    format!("{collection}/{}", percent_encoded(&name.name))
}

/// Names come from the command line, too: a `/` in one must not become another path.
fn percent_encoded(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                char::from(byte).to_string()
            }
            byte => format!("%{byte:02X}"),
        })
        .collect()
}

fn with_type(kind: &KindInfo, mut object: Value) -> Value {
    if let Some(fields) = object.as_object_mut() {
        fields.entry("apiVersion").or_insert_with(|| Value::String(kind.api_version()));
        fields.entry("kind").or_insert_with(|| Value::String(kind.kind.to_owned()));
    }
    object
}

#[cfg(test)]
mod tests {
    use leno_api::kind_of;

    use super::*;

    #[test]
    fn paths_are_those_of_kubernetes() {
        let route = kind_of("httproute").unwrap();
        let name = ObjectName::new("shop", "orders");
        let collection = "/apis/gateway.networking.k8s.io/v1/namespaces/shop/httproutes";
        assert_eq!(object_path(route, &name), format!("{collection}/orders"));
        assert_eq!(
            collection_path(kind_of("services").unwrap(), None),
            "/apis/leno.dev/v1alpha1/services"
        );
    }

    #[test]
    fn a_name_cannot_leave_its_place_in_the_path() {
        let service = kind_of("service").unwrap();
        let path = object_path(service, &ObjectName::new("a/b", "../x?y=z"));
        assert!(path.ends_with("/namespaces/a%2Fb/services/..%2Fx%3Fy%3Dz"), "{path}");
    }

    #[test]
    fn options_become_the_query() {
        assert_eq!(apply_query(ApplyOptions::default()), "fieldManager=leno");
        let all = ApplyOptions { dry_run: true, force: true };
        assert_eq!(apply_query(all), "dryRun=All&fieldManager=leno&force=true");
    }
}
