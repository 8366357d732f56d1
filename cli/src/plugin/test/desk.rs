//! The desk: one instance of a plugin, a clock that is moved by hand, services that answer as the script says.
//!
//! `desk/host.rs` and `desk/stream.rs` are what the plugin sees; `exchange.rs` drives a request through it.

use std::{
    cell::RefCell,
    collections::{BTreeMap, VecDeque},
    rc::Rc,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use leno_wasm_host::{
    CallToken, Fault, HttpCallResponse, Instance, Module, Plugin, PluginSettings, QueueListener,
    Shared, StartError,
};

pub use self::{
    host::DeskHost,
    stream::{DeskStream, Local},
};
use super::{
    notes::{Note, Notes},
    script::Service,
};

mod host;
mod services;
mod stream;

/// A plugin and what is around it.
pub struct Desk {
    plugin: Plugin<DeskHost>,
    instance: Option<Instance<DeskHost>>,
    world: Rc<RefCell<World>>,
    queues: Arc<Queues>,
    /// What happens, by the moment at which it does.
    events: BTreeMap<(u64, u64), Event>,
    sequence: u64,
    period: Option<Duration>,
    /// Which timer counts: one that was set anew makes the one before it void.
    timer: u64,
    shared: Shared,
}

/// What host, streams and desk have in common.
pub struct World {
    /// Nanoseconds since 1970.
    pub now: u64,
    pub notes: Notes,
    pub services: Vec<Service>,
    pub properties: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Calls that the plugin made.
    pub calls: usize,
    answers: Vec<(Duration, CallToken, Reply)>,
    tick: Option<Option<Duration>>,
    seed: u64,
}

/// The answer to a call.
pub enum Reply {
    Http(HttpCallResponse),
    Grpc { message: Vec<u8>, status: u32 },
}

enum Event {
    Tick(u64),
    Answer(CallToken, Reply),
}

#[derive(Default)]
struct Queues(Mutex<VecDeque<u32>>);

impl QueueListener for Queues {
    fn ready(&self, queue: u32) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push_back(queue);
    }
}

/// When the desk's time begins: any moment will do, but the same every time. 2026-01-01.
const START: u64 = 1_767_225_600_000_000_000;

impl Desk {
    /// Nothing has started yet.
    ///
    /// # Errors
    /// If the module cannot be linked.
    pub fn new(
        module: &Module,
        mut settings: PluginSettings,
    ) -> Result<Self, leno_wasm_host::LoadError> {
        let shared = Shared::default();
        settings.shared = shared.clone();
        let world = World {
            now: START,
            notes: Notes::default(),
            services: Vec::new(),
            properties: BTreeMap::new(),
            calls: 0,
            answers: Vec::new(),
            tick: None,
            seed: 1,
        };
        Ok(Self {
            plugin: Plugin::new(module, settings)?,
            instance: None,
            world: Rc::new(RefCell::new(world)),
            queues: Arc::default(),
            events: BTreeMap::new(),
            sequence: 0,
            period: None,
            timer: 0,
            shared,
        })
    }

    /// Starts the instance, unless there is one that is well.
    ///
    /// # Errors
    /// As [`Instance::start`].
    pub fn start(&mut self) -> Result<(), StartError> {
        if self.instance.as_ref().is_some_and(|instance| !instance.is_broken()) {
            return Ok(());
        }
        self.instance = None;
        // What the broken one had under way is of no use to the next.
        self.events.clear();
        self.period = None;
        let host = DeskHost::new(self.world.clone(), self.queues.clone());
        let begun = Instant::now();
        let instance = Instance::start(&self.plugin, host)?;
        let (took, memory) = (begun.elapsed(), instance.memory_bytes());
        self.world.borrow_mut().notes.add(Note::Started { took, memory });
        self.instance = Some(instance);
        self.grant();
        Ok(())
    }

    pub fn world(&self) -> &Rc<RefCell<World>> {
        &self.world
    }

    pub fn shared(&self) -> &Shared {
        &self.shared
    }

    pub fn instance(&mut self) -> Option<&mut Instance<DeskHost>> {
        self.instance.as_mut()
    }

    /// Calls the plugin, and notes what that took. `None`: there is no instance that could be called.
    pub fn call<R>(
        &mut self,
        callback: &'static str,
        run: impl FnOnce(&mut Instance<DeskHost>) -> Result<R, Fault>,
    ) -> Option<Result<R, Fault>> {
        let instance = self.instance.as_mut()?;
        let place = self.world.borrow_mut().notes.begin(callback);
        let begun = Instant::now();
        let result = run(instance);
        let (took, memory) = (begun.elapsed(), instance.memory_bytes());
        self.world.borrow_mut().notes.end(place, took, memory);
        self.grant();
        Some(result)
    }

    /// Lets time pass, and everything happen that falls into it.
    ///
    /// # Errors
    /// The fault of a callback.
    pub fn pass(&mut self, time: Duration) -> Result<(), Fault> {
        let end = self.world.borrow().now.saturating_add(nanoseconds(time));
        while self.next_until(end)? {}
        self.world.borrow_mut().now = end;
        Ok(())
    }

    /// Lets the next thing happen, if it does before `end`. False: nothing does.
    ///
    /// # Errors
    /// The fault of a callback.
    pub fn next_until(&mut self, end: u64) -> Result<bool, Fault> {
        let ready = self.queues.0.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
        if let Some(queue) = ready {
            let told = self.call("proxy_on_queue_ready", |instance| instance.on_queue_ready(queue));
            told.unwrap_or(Ok(()))?;
            return Ok(true);
        }
        let Some(entry) = self.events.first_entry().filter(|entry| entry.key().0 <= end) else {
            return Ok(false);
        };
        let moment = entry.key().0;
        let event = entry.remove();
        let mut world = self.world.borrow_mut();
        world.now = world.now.max(moment);
        drop(world);
        self.happen(event)?;
        Ok(true)
    }

    fn happen(&mut self, event: Event) -> Result<(), Fault> {
        let called = match event {
            Event::Tick(timer) if timer != self.timer => return Ok(()),
            Event::Tick(_) => {
                let timer = self.timer;
                let ticked = self.call("proxy_on_tick", Instance::on_tick);
                if timer == self.timer {
                    self.schedule_tick();
                }
                ticked
            }
            Event::Answer(token, Reply::Http(response)) => {
                self.world.borrow_mut().notes.add(Note::answer(&response));
                self.call("proxy_on_http_call_response", |instance| {
                    instance.on_http_call_response(token, response)
                })
            }
            Event::Answer(token, Reply::Grpc { message, status }) => {
                self.world.borrow_mut().notes.add(Note::GrpcAnswer { status });
                match status {
                    // Its one message says it all.
                    0 => self.call("proxy_on_grpc_receive", |instance| {
                        let told = instance.on_grpc_message(token, message);
                        instance.close_call(token);
                        told
                    }),
                    _ => self.call("proxy_on_grpc_close", |instance| {
                        instance.on_grpc_close(token, status, Vec::new())
                    }),
                }
            }
        };
        called.unwrap_or(Ok(()))
    }

    /// Starts what the plugin asked for.
    fn grant(&mut self) {
        let mut world = self.world.borrow_mut();
        let (answers, tick, now) =
            (std::mem::take(&mut world.answers), world.tick.take(), world.now);
        drop(world);
        for (after, token, reply) in answers {
            self.schedule(now.saturating_add(nanoseconds(after)), Event::Answer(token, reply));
        }
        if let Some(period) = tick {
            self.timer += 1;
            self.period = period;
            self.schedule_tick();
        }
    }

    fn schedule_tick(&mut self) {
        let now = self.world.borrow().now;
        if let Some(period) = self.period {
            self.schedule(now.saturating_add(nanoseconds(period)), Event::Tick(self.timer));
        }
    }

    fn schedule(&mut self, moment: u64, event: Event) {
        self.sequence += 1;
        self.events.insert((moment, self.sequence), event);
    }
}

/// As the ABI counts time.
pub fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
