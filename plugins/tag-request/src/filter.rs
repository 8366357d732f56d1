//! The plugin, as the host calls it.

use std::rc::Rc;

use log::error;
use plugin_kit::configuration;
use proxy_wasm::{
    hostcalls,
    traits::{Context, HttpContext, RootContext},
    types::{Action, ContextType, LogLevel, MapType},
};

use crate::configuration::{Configuration, Mode, Source, Tag};

proxy_wasm::main! {{
    proxy_wasm::set_log_level(LogLevel::Info);
    proxy_wasm::set_root_context(|_| Box::new(Root::default()));
}}

#[derive(Default)]
struct Root {
    configuration: Option<Rc<Configuration>>,
}

struct Exchange {
    configuration: Rc<Configuration>,
}

impl Context for Root {}

impl RootContext for Root {
    fn on_configure(&mut self, _size: usize) -> bool {
        let bytes = self.get_plugin_configuration().unwrap_or_default();
        match configuration::parse(&bytes) {
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
        self.write(&self.configuration.request, MapType::HttpRequestHeaders);
        Action::Continue
    }

    fn on_http_response_headers(&mut self, _count: usize, _end: bool) -> Action {
        self.write(&self.configuration.response, MapType::HttpResponseHeaders);
        Action::Continue
    }
}

impl Exchange {
    fn write(&self, tags: &[Tag], map: MapType) {
        for tag in tags {
            if let Err(status) = self.write_one(tag, map) {
                error!("{} cannot be written: {status:?}", tag.name);
            }
        }
    }

    fn write_one(&self, tag: &Tag, map: MapType) -> Result<(), proxy_wasm::types::Status> {
        let name = tag.name.as_str();
        let text = self.text(&tag.source);
        match tag.mode {
            Mode::Replace => hostcalls::set_map_value(map, name, text.as_deref()),
            Mode::Keep if hostcalls::get_map_value_bytes(map, name)?.is_some() => Ok(()),
            Mode::Keep | Mode::Add => match text {
                Some(text) => hostcalls::add_map_value(map, name, &text),
                None => Ok(()),
            },
        }
    }

    fn text(&self, source: &Source) -> Option<String> {
        match source {
            Source::Text(text) => Some(text.clone()),
            Source::Property { path, kind, otherwise } => {
                let path = path.iter().map(String::as_str).collect();
                let value = hostcalls::get_property(path).ok().flatten();
                value.and_then(|bytes| kind.text(&bytes)).or_else(|| otherwise.clone())
            }
        }
    }
}
