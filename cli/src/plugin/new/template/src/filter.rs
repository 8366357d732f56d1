//! The plugin, as the proxy calls it.

use std::rc::Rc;

use log::error;
use proxy_wasm::{
    traits::{Context, HttpContext, RootContext},
    types::{Action, ContextType, LogLevel},
};

use crate::configuration::Configuration;

proxy_wasm::main! {{
    proxy_wasm::set_log_level(LogLevel::Info);
    proxy_wasm::set_root_context(|_| Box::new(Root { configuration: None }));
}}

/// One for each worker of the proxy.
struct Root {
    configuration: Option<Rc<Configuration>>,
}

/// One for each request.
struct Exchange {
    configuration: Rc<Configuration>,
}

impl Context for Root {}

impl RootContext for Root {
    /// False refuses the configuration: the proxy keeps the last good one and says why in its status.
    fn on_configure(&mut self, _size: usize) -> bool {
        match Configuration::parse(&self.get_plugin_configuration().unwrap_or_default()) {
            Ok(configuration) => {
                self.configuration = Some(Rc::new(configuration));
                true
            }
            Err(reason) => {
                error!("pluginConfig is refused: {reason}");
                false
            }
        }
    }

    fn create_http_context(&self, _context: u32) -> Option<Box<dyn HttpContext>> {
        let configuration = self.configuration.clone()?;
        Some(Box::new(Exchange { configuration }))
    }

    fn get_type(&self) -> Option<ContextType> {
        Some(ContextType::HttpContext)
    }
}

impl Context for Exchange {}

impl HttpContext for Exchange {
    fn on_http_request_headers(&mut self, _count: usize, _end: bool) -> Action {
        // As bytes: what a peer sends need not be UTF-8, and the functions for texts panic then.
        let path = self.get_http_request_header_bytes(":path").unwrap_or_default();
        if !self.configuration.allows(&String::from_utf8_lossy(&path)) {
            self.send_http_response(403, Vec::new(), Some(b"this path is closed\n"));
            return Action::Pause;
        }
        self.set_http_request_header("x-checked-by", Some(&self.configuration.label));
        Action::Continue
    }
}
