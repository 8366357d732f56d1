//! The plugin, as the host calls it.

use std::rc::Rc;

use log::{error, warn};
use plugin_kit::configuration;
use proxy_wasm::{
    traits::{Context, HttpContext, RootContext},
    types::{Action, ContextType, LogLevel},
};

use crate::{
    configuration::Configuration,
    fields::Fields,
    head::{Head, Plan, weaken},
    masker::Masker,
};

proxy_wasm::main! {{
    proxy_wasm::set_log_level(LogLevel::Info);
    proxy_wasm::set_root_context(|_| Box::new(Root::default()));
}}

/// What a request says that would make of its answer something that cannot be masked.
const REQUEST_FIELDS: [&str; 2] = ["range", "if-range"];
/// What a response says of the bytes that it had.
const RESPONSE_FIELDS: [&str; 6] =
    ["content-length", "accept-ranges", "content-md5", "digest", "content-digest", "repr-digest"];

#[derive(Default)]
struct Root {
    policy: Option<Rc<Policy>>,
}

struct Policy {
    configuration: Configuration,
    fields: Rc<Fields>,
    mask: Rc<[u8]>,
}

struct Exchange {
    policy: Rc<Policy>,
    body: Body,
}

enum Body {
    /// Not looked into.
    Free,
    Masked(Masker),
    /// It was no JSON: nothing more of it goes on.
    Broken,
}

impl Context for Root {}

impl RootContext for Root {
    fn on_configure(&mut self, _size: usize) -> bool {
        let bytes = self.get_plugin_configuration().unwrap_or_default();
        match configuration::parse::<Configuration>(&bytes) {
            Ok(configuration) => {
                let fields = Rc::new(configuration.fields.clone());
                let mask = Rc::from(&configuration.mask[..]);
                self.policy = Some(Rc::new(Policy { configuration, fields, mask }));
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
        Some(Box::new(Exchange { policy, body: Body::Free }))
    }

    fn get_type(&self) -> Option<ContextType> {
        Some(ContextType::HttpContext)
    }
}

impl Context for Exchange {}

impl HttpContext for Exchange {
    fn on_http_request_headers(&mut self, _count: usize, _end: bool) -> Action {
        self.set_http_request_header("accept-encoding", Some("identity"));
        for name in REQUEST_FIELDS {
            self.set_http_request_header(name, None);
        }
        Action::Continue
    }

    fn on_http_response_headers(&mut self, _count: usize, end: bool) -> Action {
        match self.plan() {
            Plan::Leave => Action::Continue,
            Plan::Withhold(reason) if !end => {
                warn!("a response is withheld, since {reason} and cannot be masked");
                let headers = vec![("content-type", "application/json")];
                let body = b"{\"error\":\"the response cannot be masked\"}\n";
                self.send_http_response(502, headers, Some(body));
                Action::Pause
            }
            Plan::Withhold(_) => Action::Continue,
            Plan::Mask => {
                self.prepare_head();
                if !end {
                    let (fields, mask) = (self.policy.fields.clone(), self.policy.mask.clone());
                    self.body = Body::Masked(Masker::new(fields, mask));
                }
                Action::Continue
            }
        }
    }

    fn on_http_response_body(&mut self, size: usize, end: bool) -> Action {
        let masker = match &mut self.body {
            Body::Free => return Action::Continue,
            Body::Broken => {
                self.set_http_response_body(0, size, b"");
                return Action::Continue;
            }
            Body::Masked(masker) => masker,
        };
        // As a plain function, since `self` is borrowed: nothing of the exchange is needed for it.
        let portion = proxy_wasm::hostcalls::get_buffer(
            proxy_wasm::types::BufferType::HttpResponseBody,
            0,
            size,
        );
        let portion = portion.ok().flatten().unwrap_or_default();
        let mut masked = Vec::with_capacity(portion.len());
        let read = masker.read(&portion, &mut masked);
        let read = read.and_then(|()| if end { masker.finish() } else { Ok(()) });
        if let Err(malformed) = read {
            warn!("the rest of a response is withheld, since it is no JSON: {malformed:?}");
            self.body = Body::Broken;
        }
        self.set_http_response_body(0, size, &masked);
        Action::Continue
    }
}

impl Exchange {
    fn plan(&self) -> Plan {
        let field = |name| self.get_http_response_header_bytes(name).unwrap_or_default();
        self.policy.configuration.plan(Head {
            status: &field(":status"),
            content_type: &field("content-type"),
            content_encoding: &field("content-encoding"),
        })
    }

    fn prepare_head(&self) {
        for name in RESPONSE_FIELDS {
            self.set_http_response_header(name, None);
        }
        let tag = self.get_http_response_header_bytes("etag");
        if let Some(weak) = tag.as_deref().and_then(weaken) {
            self.set_http_response_header_bytes("etag", Some(&weak));
        }
    }
}
