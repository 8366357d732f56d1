//! The guest's callbacks, looked up once. All of them are optional.

use wasmtime::{Instance, Store, TypedFunc, WasmParams, WasmResults};

use crate::{module::LoadError, plugin::PluginSettings};

/// A callback with its name, which faults tell.
pub(crate) type Callback<P, R> = Option<(&'static str, TypedFunc<P, R>)>;

/// On headers: 0.1.0 does not tell the guest about the end of the stream.
pub(crate) enum HeadersCallback {
    Absent,
    WithoutEnd(&'static str, TypedFunc<(u32, u32), u32>),
    WithEnd(&'static str, TypedFunc<(u32, u32, u32), u32>),
}

pub(crate) struct Exports {
    pub(crate) context_create: Callback<(u32, u32), ()>,
    pub(crate) vm_start: Callback<(u32, u32), u32>,
    pub(crate) configure: Callback<(u32, u32), u32>,
    pub(crate) tick: Callback<u32, ()>,
    pub(crate) queue_ready: Callback<(u32, u32), ()>,
    pub(crate) foreign_function: Callback<(u32, u32, u32), ()>,
    pub(crate) new_connection: Callback<u32, u32>,
    pub(crate) downstream_data: Callback<(u32, u32, u32), u32>,
    pub(crate) upstream_data: Callback<(u32, u32, u32), u32>,
    pub(crate) downstream_close: Callback<(u32, u32), ()>,
    pub(crate) upstream_close: Callback<(u32, u32), ()>,
    pub(crate) request_headers: HeadersCallback,
    pub(crate) request_body: Callback<(u32, u32, u32), u32>,
    pub(crate) request_trailers: Callback<(u32, u32), u32>,
    pub(crate) response_headers: HeadersCallback,
    pub(crate) response_body: Callback<(u32, u32, u32), u32>,
    pub(crate) response_trailers: Callback<(u32, u32), u32>,
    pub(crate) http_call_response: Callback<(u32, u32, u32, u32, u32), ()>,
    pub(crate) grpc_initial_metadata: Callback<(u32, u32, u32), ()>,
    pub(crate) grpc_message: Callback<(u32, u32, u32), ()>,
    pub(crate) grpc_trailing_metadata: Callback<(u32, u32, u32), ()>,
    pub(crate) grpc_close: Callback<(u32, u32, u32), ()>,
    pub(crate) done: Callback<u32, u32>,
    pub(crate) log: Callback<u32, ()>,
    pub(crate) delete: Callback<u32, ()>,
}

/// Looks exports up, in an instance and with the plugin's capabilities.
pub(crate) struct Finder<'a, T: 'static> {
    pub(crate) instance: Instance,
    pub(crate) store: &'a mut Store<T>,
    pub(crate) settings: &'a PluginSettings,
}

impl<T: 'static> Finder<'_, T> {
    /// A function that is called whatever the capabilities say: those of the start.
    pub(crate) fn function<P: WasmParams, R: WasmResults>(
        &mut self,
        name: &'static str,
    ) -> Result<Callback<P, R>, LoadError> {
        let Some(function) = self.instance.get_func(&mut *self.store, name) else {
            return Ok(None);
        };
        let function = function
            .typed(&*self.store)
            .map_err(|error| LoadError::Export { name, reason: format!("{error:#}") })?;
        Ok(Some((name, function)))
    }

    fn callback<P: WasmParams, R: WasmResults>(
        &mut self,
        name: &'static str,
    ) -> Result<Callback<P, R>, LoadError> {
        if self.settings.allows(name) { self.function(name) } else { Ok(None) }
    }

    fn headers(&mut self, name: &'static str) -> Result<HeadersCallback, LoadError> {
        if let Ok(Some((_, function))) = self.callback(name) {
            return Ok(HeadersCallback::WithEnd(name, function));
        }
        let callback = self.callback(name)?;
        Ok(callback.map_or(HeadersCallback::Absent, |(name, function)| {
            HeadersCallback::WithoutEnd(name, function)
        }))
    }

    pub(crate) fn exports(mut self) -> Result<Exports, LoadError> {
        Ok(Exports {
            context_create: self.callback("proxy_on_context_create")?,
            vm_start: self.callback("proxy_on_vm_start")?,
            configure: self.callback("proxy_on_configure")?,
            tick: self.callback("proxy_on_tick")?,
            queue_ready: self.callback("proxy_on_queue_ready")?,
            foreign_function: self.callback("proxy_on_foreign_function")?,
            new_connection: self.callback("proxy_on_new_connection")?,
            downstream_data: self.callback("proxy_on_downstream_data")?,
            upstream_data: self.callback("proxy_on_upstream_data")?,
            downstream_close: self.callback("proxy_on_downstream_connection_close")?,
            upstream_close: self.callback("proxy_on_upstream_connection_close")?,
            request_headers: self.headers("proxy_on_request_headers")?,
            request_body: self.callback("proxy_on_request_body")?,
            request_trailers: self.callback("proxy_on_request_trailers")?,
            response_headers: self.headers("proxy_on_response_headers")?,
            response_body: self.callback("proxy_on_response_body")?,
            response_trailers: self.callback("proxy_on_response_trailers")?,
            http_call_response: self.callback("proxy_on_http_call_response")?,
            grpc_initial_metadata: self.callback("proxy_on_grpc_receive_initial_metadata")?,
            grpc_message: self.callback("proxy_on_grpc_receive")?,
            grpc_trailing_metadata: self.callback("proxy_on_grpc_receive_trailing_metadata")?,
            grpc_close: self.callback("proxy_on_grpc_close")?,
            done: self.callback("proxy_on_done")?,
            log: self.callback("proxy_on_log")?,
            delete: self.callback("proxy_on_delete")?,
        })
    }
}
