//! What the plugin gets from its host.

use std::{borrow::Cow, cell::RefCell, rc::Rc, sync::Arc, time::Duration};

use leno_wasm_host::{CallToken, GrpcCall, Host, HttpCall, LogLevel, QueueListener, Status};

use super::{DeskStream, Queues, World, services::Call};
use crate::plugin::test::notes::{Note, text};

/// The host of the desk's instance.
pub struct DeskHost {
    world: Rc<RefCell<World>>,
    queues: Arc<Queues>,
}

impl DeskHost {
    pub(super) fn new(world: Rc<RefCell<World>>, queues: Arc<Queues>) -> Self {
        Self { world, queues }
    }

    fn refuse(&self, what: &str, status: Status) -> Result<(), Status> {
        self.world.borrow_mut().notes.add(Note::Refused(what.to_owned()));
        Err(status)
    }
}

impl Host for DeskHost {
    type Stream = DeskStream;

    fn log(&mut self, level: LogLevel, message: &[u8]) {
        self.world.borrow_mut().notes.add(Note::Log(level, text(message)));
    }

    fn log_level(&self) -> LogLevel {
        LogLevel::Trace
    }

    fn now(&mut self) -> u64 {
        self.world.borrow().now
    }

    fn monotonic(&mut self) -> u64 {
        self.world.borrow().now
    }

    /// The same every time: what a test finds must be found again.
    fn random(&mut self, target: &mut [u8]) {
        let mut world = self.world.borrow_mut();
        for byte in target {
            world.seed = world
                .seed
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            *byte = world.seed.to_be_bytes()[0];
        }
    }

    fn set_tick_period(&mut self, period: Option<Duration>) {
        self.world.borrow_mut().tick = Some(period);
    }

    fn http_call(&mut self, token: CallToken, call: HttpCall<'_>) -> Result<(), Status> {
        let timeout = call.timeout;
        let call = Call::http(&call);
        match self.world.borrow_mut().call(&call, token, timeout) {
            true => Ok(()),
            false => Err(Status::BadArgument),
        }
    }

    fn grpc_call(&mut self, token: CallToken, call: GrpcCall<'_>) -> Result<(), Status> {
        let timeout = call.timeout;
        let call = Call::grpc(&call);
        match self.world.borrow_mut().call(&call, token, timeout) {
            true => Ok(()),
            false => Err(Status::ParseFailure),
        }
    }

    fn grpc_stream(&mut self, _token: CallToken, _call: GrpcCall<'_>) -> Result<(), Status> {
        self.refuse("a gRPC stream: the desk has none", Status::InternalFailure)
    }

    fn grpc_send(&mut self, _token: CallToken, _message: &[u8], _end: bool) -> Result<(), Status> {
        self.refuse("a message on a gRPC stream: the desk has none", Status::BadArgument)
    }

    fn grpc_end(&mut self, token: CallToken, _cancel: bool) {
        self.world.borrow_mut().notes.add(Note::Ended(token.number()));
    }

    fn property(&self, path: &[u8]) -> Result<Cow<'_, [u8]>, Status> {
        let value = self.world.borrow().properties.get(path).cloned();
        value.map(Cow::Owned).ok_or(Status::NotFound)
    }

    fn call_foreign_function(
        &mut self,
        _stream: Option<&mut DeskStream>,
        name: &[u8],
        _arguments: &[u8],
    ) -> Result<Vec<u8>, Status> {
        let what = format!("the foreign function `{}`: there is none", text(name));
        self.refuse(&what, Status::NotFound).map(|()| Vec::new())
    }

    fn queue_listener(&self) -> Arc<dyn QueueListener> {
        self.queues.clone()
    }
}
