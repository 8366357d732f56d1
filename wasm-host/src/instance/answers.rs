//! The callbacks that tell the plugin of answers to its calls, and foreign functions of the host.

use super::{Instance, guest_length};
use crate::{
    abi::{CallToken, ContextId, MapType},
    embedder::{Host, HttpCallResponse},
    fault::Fault,
    state::Headers,
};

const ROOT: u32 = ContextId::ROOT.0;

impl<H: Host> Instance<H> {
    /// The answer to an HTTP call. It goes to the root, which finds the stream by the token. A call that
    /// is not open is not told.
    ///
    /// # Errors
    /// A [`Fault`] of the callback.
    pub fn on_http_call_response(
        &mut self,
        token: CallToken,
        response: HttpCallResponse,
    ) -> Result<(), Fault> {
        let state = self.runner.store.data_mut();
        if !state.calls.close(token) {
            return Ok(());
        }
        let counts =
            (count(&response.headers), guest_length(&response.body), count(&response.trailers));
        let answer = &mut state.answer;
        answer.status = 0;
        answer.status_message.clear();
        answer.set_map(MapType::HttpCallHeaders, response.headers);
        if !response.trailers.is_empty() {
            answer.set_map(MapType::HttpCallTrailers, response.trailers);
        }
        answer.body = Some(response.body);
        let callback = &self.exports.http_call_response;
        let parameters = (ROOT, token.number(), counts.0, counts.1, counts.2);
        let told = self.runner.call_if_there(callback, ROOT, parameters);
        self.runner.store.data_mut().answer.clear();
        told
    }

    /// Initial metadata of a gRPC call.
    ///
    /// # Errors
    /// A [`Fault`] of the callback.
    pub fn on_grpc_initial_metadata(
        &mut self,
        token: CallToken,
        metadata: Headers,
    ) -> Result<(), Fault> {
        self.grpc_metadata(token, MapType::GrpcInitialMetadata, metadata)
    }

    /// Trailing metadata of a gRPC call.
    ///
    /// # Errors
    /// A [`Fault`] of the callback.
    pub fn on_grpc_trailing_metadata(
        &mut self,
        token: CallToken,
        metadata: Headers,
    ) -> Result<(), Fault> {
        self.grpc_metadata(token, MapType::GrpcTrailingMetadata, metadata)
    }

    fn grpc_metadata(
        &mut self,
        token: CallToken,
        map: MapType,
        metadata: Headers,
    ) -> Result<(), Fault> {
        let state = self.runner.store.data_mut();
        if !state.calls.is_open(token) {
            return Ok(());
        }
        let parameters = (ROOT, token.number(), count(&metadata));
        state.answer.set_map(map, metadata);
        let callback = match map {
            MapType::GrpcInitialMetadata => &self.exports.grpc_initial_metadata,
            _ => &self.exports.grpc_trailing_metadata,
        };
        let told = self.runner.call_if_there(callback, ROOT, parameters);
        self.runner.store.data_mut().answer.clear();
        told
    }

    /// A message of a gRPC call.
    ///
    /// # Errors
    /// A [`Fault`] of the callback.
    pub fn on_grpc_message(&mut self, token: CallToken, message: Vec<u8>) -> Result<(), Fault> {
        let state = self.runner.store.data_mut();
        if !state.calls.is_open(token) {
            return Ok(());
        }
        let parameters = (ROOT, token.number(), guest_length(&message));
        state.answer.message = Some(message);
        let callback = &self.exports.grpc_message;
        let told = self.runner.call_if_there(callback, ROOT, parameters);
        self.runner.store.data_mut().answer.clear();
        told
    }

    /// A gRPC call ended, with its status and message. The last that is told of it.
    ///
    /// # Errors
    /// A [`Fault`] of the callback.
    pub fn on_grpc_close(
        &mut self,
        token: CallToken,
        status: u32,
        message: Vec<u8>,
    ) -> Result<(), Fault> {
        let state = self.runner.store.data_mut();
        if !state.calls.close(token) {
            return Ok(());
        }
        state.answer.status = status;
        state.answer.status_message = message;
        let parameters = (ROOT, token.number(), status);
        let callback = &self.exports.grpc_close;
        self.runner.call_if_there(callback, ROOT, parameters)
    }

    /// A call ended, and the plugin is not told: of a unary gRPC call it was given the message.
    pub fn close_call(&mut self, token: CallToken) {
        self.runner.store.data_mut().calls.close(token);
    }

    /// Calls a foreign function that the plugin has; what it does is between it and the embedder.
    ///
    /// # Errors
    /// A [`Fault`] of the callback.
    pub fn on_foreign_function(&mut self, function: u32, arguments: Vec<u8>) -> Result<(), Fault> {
        let parameters = (ROOT, function, guest_length(&arguments));
        self.runner.store.data_mut().answer.foreign = Some(arguments);
        let callback = &self.exports.foreign_function;
        let told = self.runner.call_if_there(callback, ROOT, parameters);
        self.runner.store.data_mut().answer.clear();
        told
    }
}

fn count(headers: &Headers) -> u32 {
    u32::try_from(headers.len()).unwrap_or(u32::MAX)
}
