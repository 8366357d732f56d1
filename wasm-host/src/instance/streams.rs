//! The callbacks of a stream.

use wasmtime::TypedFunc;

use super::{Instance, exports::HeadersCallback, together::Row};
use crate::{
    abi::{Action, BufferType, ClosedBy, ContextId, MapType, StreamType},
    embedder::Host,
    fault::Fault,
    state::{Opens, StreamContext},
};

/// Which of a stream's callbacks: its direction and what it opens.
#[derive(Clone, Copy)]
struct Phase {
    direction: StreamType,
    opens: Opens,
}

const fn map(direction: StreamType, map: MapType) -> Phase {
    Phase { direction, opens: Opens { map: Some(map), buffer: None } }
}

/// A body. At its end the guest may add trailers.
fn body(direction: StreamType, buffer: BufferType, trailers: MapType, end: bool) -> Phase {
    Phase { direction, opens: Opens { map: end.then_some(trailers), buffer: Some(buffer) } }
}

impl<H: Host> Instance<H> {
    /// A stream begins with the headers of its request: [`Instance::create_context`], then
    /// [`Instance::on_request_headers`], in one call where the plugin has both callbacks.
    pub fn begin(
        &mut self,
        stream: H::Stream,
        count: u32,
        end: bool,
    ) -> (ContextId, Result<Action, Fault>) {
        let Some(together) = &self.together else {
            let (context, created) = self.create_context(stream);
            return (context, created.and_then(|()| self.on_request_headers(context, count, end)));
        };
        let id = self.runner.store.data_mut().streams.insert(StreamContext::new(stream));
        let parameters = (id, ContextId::ROOT.0, count, u32::from(end));
        let (step, begin) = (together.step, &together.begin);
        let seen = self.runner.row(Row::Begin, step, begin, id, parameters);
        let phase = map(StreamType::Request, MapType::RequestHeaders);
        let context = ContextId(id);
        (context, seen.map(|action| self.leave(context, phase, Action::of_headers(action))))
    }

    /// The headers of a request came; `count` is how many, `end` whether nothing follows them.
    /// [`Action::Pause`] holds everything until [`crate::Stream::continue_stream`].
    ///
    /// # Errors
    /// A [`Fault`] of the callback.
    pub fn on_request_headers(
        &mut self,
        context: ContextId,
        count: u32,
        end: bool,
    ) -> Result<Action, Fault> {
        let phase = map(StreamType::Request, MapType::RequestHeaders);
        self.enter(context, phase);
        let callback = &self.exports.request_headers;
        let result = headers(&mut self.runner, callback, context, count, end);
        Ok(self.leave(context, phase, Action::of_headers(result?)))
    }

    /// Bytes of a request's body came: `size` is how many the guest can read, with what it paused for.
    ///
    /// # Errors
    /// A [`Fault`] of the callback.
    pub fn on_request_body(
        &mut self,
        context: ContextId,
        size: u32,
        end: bool,
    ) -> Result<Action, Fault> {
        let phase =
            body(StreamType::Request, BufferType::RequestBody, MapType::RequestTrailers, end);
        self.enter(context, phase);
        let parameters = (context.0, size, u32::from(end));
        let result = self.runner.call_if_there(&self.exports.request_body, context.0, parameters);
        Ok(self.leave(context, phase, Action::of_data(result?)))
    }

    /// The trailers of a request came.
    ///
    /// # Errors
    /// A [`Fault`] of the callback.
    pub fn on_request_trailers(&mut self, context: ContextId, count: u32) -> Result<Action, Fault> {
        let phase = map(StreamType::Request, MapType::RequestTrailers);
        self.enter(context, phase);
        let parameters = (context.0, count);
        let result =
            self.runner.call_if_there(&self.exports.request_trailers, context.0, parameters);
        Ok(self.leave(context, phase, Action::of_headers(result?)))
    }

    /// The headers of a response came. See [`Instance::on_request_headers`].
    ///
    /// # Errors
    /// A [`Fault`] of the callback.
    pub fn on_response_headers(
        &mut self,
        context: ContextId,
        count: u32,
        end: bool,
    ) -> Result<Action, Fault> {
        let phase = map(StreamType::Response, MapType::ResponseHeaders);
        self.enter(context, phase);
        let callback = &self.exports.response_headers;
        let result = headers(&mut self.runner, callback, context, count, end);
        Ok(self.leave(context, phase, Action::of_headers(result?)))
    }

    /// Bytes of a response's body came. See [`Instance::on_request_body`].
    ///
    /// # Errors
    /// A [`Fault`] of the callback.
    pub fn on_response_body(
        &mut self,
        context: ContextId,
        size: u32,
        end: bool,
    ) -> Result<Action, Fault> {
        let phase =
            body(StreamType::Response, BufferType::ResponseBody, MapType::ResponseTrailers, end);
        self.enter(context, phase);
        let parameters = (context.0, size, u32::from(end));
        let result = self.runner.call_if_there(&self.exports.response_body, context.0, parameters);
        Ok(self.leave(context, phase, Action::of_data(result?)))
    }

    /// The trailers of a response came.
    ///
    /// # Errors
    /// A [`Fault`] of the callback.
    pub fn on_response_trailers(
        &mut self,
        context: ContextId,
        count: u32,
    ) -> Result<Action, Fault> {
        let phase = map(StreamType::Response, MapType::ResponseTrailers);
        self.enter(context, phase);
        let parameters = (context.0, count);
        let result =
            self.runner.call_if_there(&self.exports.response_trailers, context.0, parameters);
        Ok(self.leave(context, phase, Action::of_headers(result?)))
    }

    /// A TCP connection was accepted.
    ///
    /// # Errors
    /// A [`Fault`] of the callback.
    pub fn on_new_connection(&mut self, context: ContextId) -> Result<Action, Fault> {
        let phase = Phase { direction: StreamType::Downstream, opens: Opens::default() };
        self.enter(context, phase);
        let result = self.runner.call_if_there(&self.exports.new_connection, context.0, context.0);
        Ok(self.leave(context, phase, Action::of_headers(result?)))
    }

    /// Bytes came from the downstream of a TCP connection.
    ///
    /// # Errors
    /// A [`Fault`] of the callback.
    pub fn on_downstream_data(
        &mut self,
        context: ContextId,
        size: u32,
        end: bool,
    ) -> Result<Action, Fault> {
        let opens = Opens { map: None, buffer: Some(BufferType::DownstreamData) };
        let phase = Phase { direction: StreamType::Downstream, opens };
        self.enter(context, phase);
        let parameters = (context.0, size, u32::from(end));
        let result =
            self.runner.call_if_there(&self.exports.downstream_data, context.0, parameters);
        Ok(self.leave(context, phase, Action::of_data(result?)))
    }

    /// Bytes came from the upstream of a TCP connection.
    ///
    /// # Errors
    /// A [`Fault`] of the callback.
    pub fn on_upstream_data(
        &mut self,
        context: ContextId,
        size: u32,
        end: bool,
    ) -> Result<Action, Fault> {
        let opens = Opens { map: None, buffer: Some(BufferType::UpstreamData) };
        let phase = Phase { direction: StreamType::Upstream, opens };
        self.enter(context, phase);
        let parameters = (context.0, size, u32::from(end));
        let result = self.runner.call_if_there(&self.exports.upstream_data, context.0, parameters);
        Ok(self.leave(context, phase, Action::of_data(result?)))
    }

    /// The downstream of a TCP connection is closed.
    ///
    /// # Errors
    /// A [`Fault`] of the callback.
    pub fn on_downstream_close(&mut self, context: ContextId, by: ClosedBy) -> Result<(), Fault> {
        let parameters = (context.0, by as u32);
        self.runner.call_if_there(&self.exports.downstream_close, context.0, parameters)
    }

    /// The upstream of a TCP connection is closed.
    ///
    /// # Errors
    /// A [`Fault`] of the callback.
    pub fn on_upstream_close(&mut self, context: ContextId, by: ClosedBy) -> Result<(), Fault> {
        let parameters = (context.0, by as u32);
        self.runner.call_if_there(&self.exports.upstream_close, context.0, parameters)
    }

    /// An HTTP stream ended: `proxy_on_log`, `proxy_on_done`, `proxy_on_delete`, in the order that plugins
    /// know. Gives the stream back, with the fault of a callback if there was one.
    pub fn finish(&mut self, context: ContextId) -> (Option<H::Stream>, Result<(), Fault>) {
        self.end(context, true);
        let told = match &self.together {
            Some(together) => {
                let (step, finish) = (together.step, &together.finish);
                self.runner.row(Row::Finish, step, finish, context.0, context.0)
            }
            None => self
                .log(context)
                .and_then(|()| self.done(context))
                .and_then(|()| self.delete(context)),
        };
        (self.abandon(context), told)
    }

    /// A TCP connection ended: `proxy_on_done`, `proxy_on_log`, `proxy_on_delete`.
    pub fn finish_connection(
        &mut self,
        context: ContextId,
    ) -> (Option<H::Stream>, Result<(), Fault>) {
        self.end(context, false);
        let told =
            self.done(context).and_then(|()| self.log(context)).and_then(|()| self.delete(context));
        (self.abandon(context), told)
    }

    /// `readable`: while it is logged.
    fn end(&mut self, context: ContextId, readable: bool) {
        if let Some(context) = self.runner.store.data_mut().streams.get_mut(context.0) {
            context.end();
            context.logging = readable;
        }
    }

    fn log(&mut self, context: ContextId) -> Result<(), Fault> {
        let logged = self.runner.call_if_there(&self.exports.log, context.0, context.0);
        if let Some(context) = self.runner.store.data_mut().streams.get_mut(context.0) {
            context.logging = false;
        }
        logged
    }

    /// What a stream's callback returns means nothing, here as elsewhere.
    fn done(&mut self, context: ContextId) -> Result<(), Fault> {
        self.runner.call_if_there(&self.exports.done, context.0, context.0).map(|_: u32| ())
    }

    fn delete(&mut self, context: ContextId) -> Result<(), Fault> {
        self.runner.call_if_there(&self.exports.delete, context.0, context.0)
    }

    fn enter(&mut self, context: ContextId, phase: Phase) {
        if let Some(context) = self.runner.store.data_mut().streams.get_mut(context.0) {
            context.enter(phase.direction, phase.opens);
        }
    }

    /// A direction that the guest continued while it was called goes on, whatever the guest returned.
    fn leave(&mut self, context: ContextId, phase: Phase, action: Action) -> Action {
        let Some(context) = self.runner.store.data_mut().streams.get_mut(context.0) else {
            return action;
        };
        let continued = context.leave(phase.direction, action != Action::Continue);
        match action {
            Action::Pause | Action::PauseWithoutView if continued => Action::Continue,
            action => action,
        }
    }
}

type Runner<H> = super::runner::Runner<H>;

fn headers<H: Host>(
    runner: &mut Runner<H>,
    callback: &HeadersCallback,
    context: ContextId,
    count: u32,
    end: bool,
) -> Result<u32, Fault> {
    match callback {
        HeadersCallback::Absent => {
            runner.call_if_there(&None::<(_, TypedFunc<(), u32>)>, context.0, ())
        }
        HeadersCallback::WithoutEnd(name, function) => {
            runner.run(name, context.0, |store| function.call(store, (context.0, count)))
        }
        HeadersCallback::WithEnd(name, function) => {
            let parameters = (context.0, count, u32::from(end));
            runner.run(name, context.0, |store| function.call(store, parameters))
        }
    }
}
