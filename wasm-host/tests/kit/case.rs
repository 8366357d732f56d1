//! The cases of the kit, as data.

use std::{collections::BTreeMap, fs, path::Path};

use serde::Deserialize;

pub type Pair = (String, String);

#[derive(Deserialize)]
pub struct Case {
    pub name: String,
    pub wasm: String,
    #[serde(default)]
    pub config: String,
    #[serde(default)]
    pub vm_config: String,
    #[serde(default)]
    pub root_id: String,
    #[serde(default)]
    pub vm_id: String,
    pub plugin_name: Option<String>,
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    pub failure_policy: Option<String>,
    pub fail_open: Option<bool>,
    pub settle_ms: Option<u64>,
    pub buffer_limit: Option<usize>,
    #[serde(default)]
    pub allow_on_headers_stop_iteration: bool,
    pub kind: Option<String>,
    #[serde(default)]
    pub extra_plugins: Vec<Extra>,
    pub requests: Vec<Request>,
    pub expected: Expected,
}

#[derive(Deserialize)]
pub struct Extra {
    pub wasm: String,
    #[serde(default)]
    pub config: String,
    #[serde(default)]
    pub root_id: String,
    #[serde(default)]
    pub vm_id: String,
    pub plugin_name: Option<String>,
}

#[derive(Clone, Default, Deserialize)]
pub struct Request {
    #[serde(default)]
    pub name: String,
    #[serde(default)]
    pub path: String,
    pub method: Option<String>,
    #[serde(default)]
    pub headers: Vec<Pair>,
    pub body: Option<String>,
    pub chunks: Option<Vec<String>>,
    #[serde(default)]
    pub trailers: Vec<Pair>,
    pub timeout_s: Option<f64>,
    pub pre_wait_ms: Option<u64>,
    pub wait_after_ms: Option<u64>,
    pub start_delay_ms: Option<u64>,
    pub chunk_delay_ms: Option<u64>,
    #[serde(default)]
    pub parallel: Vec<Request>,
    #[serde(default)]
    pub tcp: Vec<TcpStep>,
}

#[derive(Clone, Default, Deserialize)]
pub struct TcpStep {
    pub send: Option<String>,
    pub read_ms: Option<u64>,
    pub shutdown: Option<u32>,
}

#[derive(Deserialize)]
pub struct Expected {
    pub started: bool,
    #[serde(default)]
    pub startup_logs: Vec<Pair>,
    #[serde(default)]
    pub observations: Vec<Observation>,
}

#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
pub struct Observation {
    pub client: Option<Client>,
    pub origin: Vec<Received>,
    pub callouts: Vec<Received>,
    pub tcp_origin: Option<Vec<String>>,
    pub logs: Vec<Pair>,
}

/// What the client saw; `steps` are what it read of a TCP connection.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
pub struct Client {
    pub status: Option<u32>,
    #[serde(default)]
    pub headers: Vec<Pair>,
    #[serde(default)]
    pub body: String,
    #[serde(default)]
    pub trailers: Vec<Pair>,
    pub end: Option<String>,
    pub steps: Option<Vec<String>>,
}

#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
pub struct Received {
    pub method: String,
    pub path: String,
    pub headers: Vec<Pair>,
    pub body: Option<String>,
    pub trailers: Vec<Pair>,
    pub complete: bool,
}

impl Case {
    pub fn load_all() -> Vec<Self> {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/kit/cases");
        let mut files: Vec<_> =
            fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        files.iter().map(|file| serde_json::from_slice(&fs::read(file).unwrap()).unwrap()).collect()
    }

    pub fn fails_open(&self) -> bool {
        self.fail_open == Some(true) || self.failure_policy.as_deref() == Some("FAIL_OPEN")
    }
}

/// Bodies of one letter are written short in the cases.
pub fn expand(body: &str) -> Vec<u8> {
    match body.strip_prefix("repeat:a:") {
        Some(count) => vec![b'a'; count.parse().unwrap()],
        None => body.as_bytes().to_vec(),
    }
}
