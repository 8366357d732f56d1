//! The plugin, as the host calls it.

use std::{rc::Rc, time::UNIX_EPOCH};

use log::{error, warn};
use plugin_kit::{configuration, shared_data::HostData};
use proxy_wasm::{
    hostcalls,
    traits::{Context, HttpContext, RootContext},
    types::{Action, ContextType, LogLevel, MetricType},
};

use crate::{
    configuration::{Caller, Configuration},
    ledger::{Ledger, Trouble},
    quota::{Decision, retry_after},
};

proxy_wasm::main! {{
    proxy_wasm::set_log_level(LogLevel::Info);
    proxy_wasm::set_root_context(|_| Box::new(Root::default()));
}}

/// Bytes of a caller's name: a SPIFFE ID has 2048 at most.
const CALLER_BYTES: usize = 2048;

struct Policy {
    configuration: Configuration,
    ledger: Ledger<HostData>,
    limited: u32,
}

#[derive(Default)]
struct Root {
    policy: Option<Rc<Policy>>,
}

struct Exchange {
    policy: Rc<Policy>,
    remaining: Option<u32>,
}

impl Context for Root {}

impl RootContext for Root {
    fn on_configure(&mut self, _size: usize) -> bool {
        let bytes = self.get_plugin_configuration().unwrap_or_default();
        let configuration = match configuration::parse::<Configuration>(&bytes) {
            Ok(configuration) => configuration,
            Err(reason) => {
                error!("pluginConfig is refused: {reason}");
                return false;
            }
        };
        let Ok(limited) = hostcalls::define_metric(MetricType::Counter, "caller_quota_limited")
        else {
            return false;
        };
        let name = self.get_property(vec!["plugin_name"]).unwrap_or_default();
        let ledger = Ledger::new(HostData, &name, configuration.quota);
        self.policy = Some(Rc::new(Policy { configuration, ledger, limited }));
        true
    }

    fn create_http_context(&self, _context: u32) -> Option<Box<dyn HttpContext>> {
        let policy = self.policy.clone()?;
        Some(Box::new(Exchange { policy, remaining: None }))
    }

    fn get_type(&self) -> Option<ContextType> {
        Some(ContextType::HttpContext)
    }
}

impl Context for Exchange {}

impl HttpContext for Exchange {
    fn on_http_request_headers(&mut self, _count: usize, _end: bool) -> Action {
        let caller = self.caller();
        if caller.len() > CALLER_BYTES {
            return self.answer(400, "the caller's name is too long", &[]);
        }
        match self.policy.ledger.admit(&caller, self.now()) {
            Ok(Decision::Allowed { remaining, .. }) => {
                self.remaining = Some(remaining);
                Action::Continue
            }
            Ok(Decision::Limited { wait }) => self.limit(wait),
            Err(trouble) => {
                warn!("requests cannot be counted, so none passes: {}", explain(trouble));
                self.answer(503, "the quota cannot be checked now", &[])
            }
        }
    }

    fn on_http_response_headers(&mut self, _count: usize, _end: bool) -> Action {
        if let Some(remaining) = self.remaining {
            let limit = self.policy.configuration.quota.burst().to_string();
            self.set_http_response_header("x-ratelimit-limit", Some(&limit));
            let remaining = remaining.to_string();
            self.set_http_response_header("x-ratelimit-remaining", Some(&remaining));
        }
        Action::Continue
    }
}

impl Exchange {
    fn caller(&self) -> Vec<u8> {
        let found = match &self.policy.configuration.caller {
            Caller::Header(name) => self.get_http_request_header_bytes(name.as_str()),
            // The SDK's own panics where the proxy has nothing to answer a path with, as for a whole object.
            Caller::Property(path) => {
                hostcalls::get_property(path.split('.').collect()).ok().flatten()
            }
        };
        found.unwrap_or_default()
    }

    fn now(&self) -> u64 {
        let now = self.get_current_time().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
    }

    fn limit(&mut self, wait: u64) -> Action {
        if hostcalls::increment_metric(self.policy.limited, 1).is_err() {
            warn!("the metric caller_quota_limited is gone");
        }
        self.remaining = Some(0);
        let seconds = retry_after(wait).to_string();
        self.answer(429, "too many requests", &[("retry-after", &seconds)])
    }

    fn answer(&self, status: u32, reason: &str, more: &[(&str, &str)]) -> Action {
        let body = format!("{{\"error\":\"{reason}\"}}\n");
        let mut headers = vec![("content-type", "application/json")];
        headers.extend(more);
        self.send_http_response(status, headers, Some(body.as_bytes()));
        Action::Pause
    }
}

fn explain(trouble: Trouble) -> &'static str {
    match trouble {
        Trouble::Refused => "the proxy has no room in shared data, or does not allow them",
        Trouble::Contended => "too many requests of one caller at once",
    }
}
