//! The plugin, as the host calls it.

use std::{rc::Rc, time::UNIX_EPOCH};

use log::{error, warn};
use plugin_kit::{configuration, shared_data::HostData};
use proxy_wasm::{
    traits::{Context, HttpContext, RootContext},
    types::{Action, ContextType, LogLevel},
};

use crate::{
    cache::Cache,
    configuration::Configuration,
    verdict::{Verdict, is_key},
};

proxy_wasm::main! {{
    proxy_wasm::set_log_level(LogLevel::Info);
    proxy_wasm::set_root_context(|_| Box::new(Root::default()));
}}

/// Headers that bind the question to the request for which it is asked.
const TRACE: [&str; 3] = ["x-request-id", "traceparent", "tracestate"];

struct Policy {
    configuration: Configuration,
    cache: Cache<HostData>,
}

#[derive(Default)]
struct Root {
    policy: Option<Rc<Policy>>,
}

struct Exchange {
    policy: Rc<Policy>,
    /// The key that the service is being asked about.
    key: Vec<u8>,
}

impl Context for Root {}

impl RootContext for Root {
    fn on_configure(&mut self, _size: usize) -> bool {
        let bytes = self.get_plugin_configuration().unwrap_or_default();
        match configuration::parse::<Configuration>(&bytes) {
            Ok(configuration) => {
                let cache = Cache::new(HostData, &configuration);
                self.policy = Some(Rc::new(Policy { configuration, cache }));
                true
            }
            Err(reason) => {
                error!("pluginConfig is refused: {reason}");
                false
            }
        }
    }

    fn create_http_context(&self, _context: u32) -> Option<Box<dyn HttpContext>> {
        let policy = self.policy.clone()?;
        Some(Box::new(Exchange { policy, key: Vec::new() }))
    }

    fn get_type(&self) -> Option<ContextType> {
        Some(ContextType::HttpContext)
    }
}

impl HttpContext for Exchange {
    fn on_http_request_headers(&mut self, _count: usize, _end: bool) -> Action {
        let policy = self.policy.clone();
        let header = policy.configuration.header.as_str();
        let key = self.get_http_request_header_bytes(header).unwrap_or_default();
        // Neither may come from the caller: the name is ours to give, and the key is for us.
        self.set_http_request_header(policy.configuration.caller_header.as_str(), None);
        self.set_http_request_header(header, None);
        if !is_key(&key) {
            return self.refuse(401, "an API key is missing", header);
        }
        match policy.cache.find(&key, self.now()) {
            Some(verdict) => self.obey(verdict, false),
            None => self.ask(key),
        }
    }
}

impl Context for Exchange {
    fn on_http_call_response(&mut self, _: u32, _: usize, _: usize, _: usize) {
        let policy = self.policy.clone();
        let status = self.get_http_call_response_header_bytes(":status");
        let caller = policy.configuration.caller_header.as_str();
        let caller = self.get_http_call_response_header_bytes(caller);
        let Some(verdict) = Verdict::of_answer(status.as_deref(), caller.as_deref()) else {
            let status =
                String::from_utf8_lossy(status.as_deref().unwrap_or_default()).into_owned();
            warn!("{} gave no verdict: status {status}", policy.configuration.service);
            self.unavailable();
            return;
        };
        if policy.cache.keep(&self.key, &verdict, self.now()).is_err() {
            warn!("no room to remember a verdict: every request asks");
        }
        self.obey(verdict, true);
    }
}

impl Exchange {
    fn now(&self) -> u64 {
        let now = self.get_current_time().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
    }

    fn ask(&mut self, key: Vec<u8>) -> Action {
        let policy = self.policy.clone();
        let Configuration { service, path, header, timeout, .. } = &policy.configuration;
        // `is_key` allows ASCII only.
        let text = String::from_utf8_lossy(&key).into_owned();
        let traced: Vec<_> = TRACE
            .into_iter()
            .filter_map(|name| Some((name, self.get_http_request_header_bytes(name)?)))
            .filter_map(|(name, value)| Some((name, String::from_utf8(value).ok()?)))
            .collect();
        let mut headers = vec![(":method", "GET"), (":path", path), (":authority", service)];
        headers.push((header.as_str(), &text));
        headers.extend(traced.iter().map(|(name, value)| (*name, value.as_str())));
        match self.dispatch_http_call(service, headers, None, Vec::new(), timeout.duration()) {
            Ok(_) => {
                self.key = key;
                Action::Pause
            }
            Err(status) => {
                error!("{service} cannot be asked: {status:?}");
                self.unavailable()
            }
        }
    }

    /// `waiting`: the request is on hold.
    fn obey(&mut self, verdict: Verdict, waiting: bool) -> Action {
        let policy = self.policy.clone();
        match verdict {
            Verdict::Accepted(caller) => {
                let header = policy.configuration.caller_header.as_str();
                self.set_http_request_header(header, caller.as_deref());
                if waiting {
                    self.resume_http_request();
                }
                Action::Continue
            }
            Verdict::Unknown => {
                self.refuse(401, "the API key is unknown", policy.configuration.header.as_str())
            }
            Verdict::Forbidden => self.refuse(
                403,
                "the API key does not allow this",
                policy.configuration.header.as_str(),
            ),
        }
    }

    fn unavailable(&self) -> Action {
        self.refuse(503, "API keys cannot be checked now", "")
    }

    fn refuse(&self, status: u32, reason: &str, header: &str) -> Action {
        let challenge = format!("ApiKey header=\"{header}\"");
        let body = format!("{{\"error\":\"{reason}\"}}\n");
        let mut headers = vec![("content-type", "application/json"), ("cache-control", "no-store")];
        if status == 401 {
            headers.push(("www-authenticate", &challenge));
        }
        self.send_http_response(status, headers, Some(body.as_bytes()));
        Action::Pause
    }
}
