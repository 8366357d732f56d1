//! One worker's instance of a plugin: started at first use, thrown away when it breaks, started again after a pause.

use std::{
    cell::{Cell, OnceCell, RefCell},
    fmt,
    rc::Rc,
    sync::{Arc, Weak, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use leno_api::model::wasm_plugin::FailurePolicy;
use leno_wasm_host::{Fault, FaultKind, Instance, StartError};
use rustc_hash::FxHashMap;

use super::{
    callouts::Callouts,
    host::ProxyHost,
    plugin::{Chain, Figures, Needs, Plugin},
    restart::Restart,
    state::{Node, State},
    stream::{PluginStream, Spare},
    tally::Tally,
};

/// The instances of one worker.
pub struct Seats {
    seats: RefCell<FxHashMap<u64, Rc<Seat>>>,
    /// Of plugins that nobody uses any more and that are not done yet, and until when they may be so.
    ending: RefCell<Vec<(Rc<Seat>, Duration)>>,
    surroundings: Rc<Surroundings>,
}

/// What every instance of a worker has around it.
pub(super) struct Surroundings {
    pub(super) callouts: OnceCell<Rc<dyn Callouts>>,
    pub(super) node: Arc<Node>,
    pub(super) started: Instant,
    /// Bytes of bodies that plugins hold.
    held_bytes: Cell<usize>,
}

/// Bytes of bodies that all plugins of a worker may hold: of 64 exchanges with as much as one may have. Without it a caller
/// with many connections decides how much memory a plugin that waits for whole bodies costs.
pub(super) const MAX_HELD_IN_ALL: usize = 64 << 20;

/// How long a plugin that nobody uses any more may be about what it has begun, if it says that it is not done: to send what
/// it has collected, for instance.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// Where an instance of one plugin runs. Exchanges hold on to it and not to the plugin, whose references all workers count.
pub(super) struct Seat {
    label: Arc<str>,
    version: Box<str>,
    pub(super) failure: FailurePolicy,
    pub(super) needs: Needs,
    /// Gone when it is in force no more.
    plugin: Weak<Plugin>,
    linked: leno_wasm_host::Plugin<ProxyHost>,
    pub(super) figures: Arc<Figures>,
    surroundings: Rc<Surroundings>,
    /// In whose behalf the plugin runs: for its log lines.
    current: Rc<RefCell<Option<Rc<State>>>>,
    /// Which instance it is: contexts belong to one.
    generation: Cell<u64>,
    /// The instance that broke last in nobody's behalf, while no exchange is known that was lost by it.
    own_fault: Cell<Option<u64>>,
    tally: Tally,
    /// `proxy_on_done` of its root was called.
    told_its_end: Cell<bool>,
    pub(super) spare: Spare,
    inner: RefCell<Inner>,
}

/// When a call began.
struct Began {
    /// By a clock that costs nothing; nanoseconds.
    coarse: u64,
    /// By the system's, which takes as long to read as a call takes, with how many calls it stands for.
    exact: Option<(Instant, u64)>,
}

#[derive(Default)]
struct Inner {
    instance: Option<Instance<ProxyHost>>,
    restart: Restart,
    /// Whether there was an instance before.
    used: bool,
    memory_bytes: i64,
}

/// Why a plugin could not be called, or broke.
#[derive(Debug)]
pub(super) enum Broken {
    /// It did something wrong just now.
    Fault(Fault),
    /// The instance that knew the stream is no more.
    Lost,
    /// It broke a short while ago.
    Pausing,
    /// It does not start.
    Start(String),
}

impl fmt::Display for Broken {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fault(fault) => fault.fmt(formatter),
            Self::Lost => formatter.write_str("it broke in another exchange"),
            Self::Pausing => formatter.write_str("it broke and is not started again yet"),
            Self::Start(reason) => write!(formatter, "it does not start: {reason}"),
        }
    }
}

impl Seats {
    /// None yet. `started`: when time began for those that break.
    pub fn new(started: Instant, node: Node) -> Self {
        let node = Arc::new(node);
        let held_bytes = Cell::new(0);
        let surroundings = Surroundings { callouts: OnceCell::new(), node, started, held_bytes };
        let surroundings = Rc::new(surroundings);
        Self { seats: RefCell::default(), ending: RefCell::default(), surroundings }
    }

    /// Whom plugins send their own requests by. Without it they can send none.
    pub fn call_by(&self, callouts: Rc<dyn Callouts>) {
        // Set once, where the worker begins.
        drop(self.surroundings.callouts.set(callouts));
    }

    /// Who we are.
    pub fn node(&self) -> &Arc<Node> {
        &self.surroundings.node
    }

    /// Starts instances of all plugins of a chain: their timers run without a request, and the first request need not
    /// wait for them.
    pub fn prepare(&self, chain: &Chain) {
        for slot in chain.slots() {
            let canary = slot.canary.as_ref().map(|(canary, _)| canary);
            for plugin in slot.current.iter().chain(canary) {
                self.seat(plugin).revive();
            }
        }
    }

    /// Ends the instances of plugins that nobody uses any more, and starts those again that broke.
    pub fn sweep(&self) {
        self.end_slow();
        if self.seats.borrow().is_empty() {
            return;
        }
        // One reference is that of the table.
        let unused =
            |seat: &Rc<Seat>| seat.plugin.strong_count() == 0 && Rc::strong_count(seat) == 1;
        let mut ended: Vec<Rc<Seat>> = Vec::new();
        self.seats.borrow_mut().retain(|_, seat| {
            let keep = !unused(seat);
            if !keep {
                ended.push(seat.clone());
            }
            keep
        });
        for seat in ended {
            match seat.shut_down() {
                true => seat.end(),
                false => self.ending.borrow_mut().push((seat.clone(), seat.now() + LAST_WORDS)),
            }
        }
        let seats = self.seats.borrow();
        seats.values().for_each(|seat| seat.tell());
        let broken: Vec<_> = seats.values().filter(|seat| seat.is_empty()).cloned().collect();
        drop(seats);
        broken.iter().for_each(Seat::revive);
    }

    /// Ends those that have called `proxy_done` since, or have not for too long.
    fn end_slow(&self) {
        let mut over = Vec::new();
        self.ending.borrow_mut().retain(|(seat, until)| {
            let keep = seat.now() < *until && seat.waits_for_done();
            if !keep {
                over.push(seat.clone());
            }
            keep
        });
        over.iter().for_each(|seat| seat.end());
    }

    pub(super) fn seat(&self, plugin: &Arc<Plugin>) -> Rc<Seat> {
        if let Some(seat) = self.seats.borrow().get(&plugin.id) {
            return seat.clone();
        }
        let seat = Rc::new(Seat::new(plugin, self.surroundings.clone()));
        self.seats.borrow_mut().insert(plugin.id, seat.clone());
        seat
    }
}

impl Seat {
    fn new(plugin: &Arc<Plugin>, surroundings: Rc<Surroundings>) -> Self {
        Self {
            label: plugin.label.clone(),
            version: plugin.version.clone(),
            failure: plugin.failure,
            needs: plugin.needs,
            plugin: Arc::downgrade(plugin),
            linked: plugin.linked.clone(),
            figures: plugin.figures.clone(),
            surroundings,
            current: Rc::default(),
            generation: Cell::new(0),
            own_fault: Cell::new(None),
            tally: Tally::default(),
            told_its_end: Cell::new(false),
            spare: Cell::new(None),
            inner: RefCell::default(),
        }
    }

    /// The stream of an exchange or connection in which this is plugin `at`.
    pub(super) fn stream(&self, state: &Rc<State>, at: usize) -> PluginStream {
        self.tally.saw();
        PluginStream::new(state, at)
    }

    /// A stream that held `before` bytes of a body holds `now`. Whether all plugins of the worker may hold as much as they
    /// do then.
    pub(super) fn holds(&self, before: usize, now: usize) -> bool {
        let all = &self.surroundings.held_bytes;
        all.set((all.get() + now).saturating_sub(before));
        let [before_all, now_all] = [before, now].map(|bytes| i64::try_from(bytes).unwrap_or(0));
        self.figures.held_bytes.fetch_add(now_all - before_all, Relaxed);
        now <= before || all.get() <= MAX_HELD_IN_ALL
    }

    /// Takes a stream back that has ended.
    pub(super) fn release(&self, stream: PluginStream) {
        stream.release(&self.spare);
    }

    /// `shop/tag`.
    pub(super) fn label(&self) -> &Arc<str> {
        &self.label
    }

    /// Which instance it is now.
    pub(super) fn generation(&self) -> u64 {
        self.generation.get()
    }

    /// Calls the instance, which is started if there is none, in behalf of `state`. `calls`: how many callbacks these are.
    pub(super) fn call<T>(
        self: &Rc<Self>,
        state: &Rc<State>,
        calls: u64,
        call: impl FnOnce(&mut Instance<ProxyHost>) -> Result<T, Fault>,
    ) -> Result<T, Broken> {
        let mut inner = self.inner.try_borrow_mut().map_err(|_| Broken::Pausing)?;
        if inner.instance.is_none() {
            self.start(&mut inner)?;
        }
        self.run(&mut inner, Some(state), calls, call)
    }

    /// Calls the instance that is called `generation`, if it is still there. `state`: in whose behalf, if anybody's.
    pub(super) fn call_again<T>(
        &self,
        generation: u64,
        state: Option<&Rc<State>>,
        calls: u64,
        call: impl FnOnce(&mut Instance<ProxyHost>) -> Result<T, Fault>,
    ) -> Result<T, Broken> {
        if self.generation.get() != generation {
            return Err(Broken::Lost);
        }
        let mut inner = self.inner.try_borrow_mut().map_err(|_| Broken::Pausing)?;
        self.run(&mut inner, state, calls, call)
    }

    /// The call that is under way was one callback more than it was said to be.
    pub(super) fn called_once_more(&self) {
        self.tally.called(1);
    }

    fn run<T>(
        &self,
        inner: &mut Inner,
        state: Option<&Rc<State>>,
        calls: u64,
        call: impl FnOnce(&mut Instance<ProxyHost>) -> Result<T, Fault>,
    ) -> Result<T, Broken> {
        let Some(instance) = &mut inner.instance else { return Err(Broken::Lost) };
        if self.needs.logs {
            self.current.replace(state.cloned());
        }
        let exact = self.tally.weight().map(|weight| (Instant::now(), weight));
        let began = Began { coarse: instance.coarse_time(), exact };
        let called = call(instance);
        self.tally.called(calls);
        if let Some((exact, weight)) = began.exact {
            self.tally.spent(exact.elapsed(), weight);
        }
        if self.needs.logs {
            self.current.take();
        }
        let cost = match (&called, began.exact) {
            (Ok(_), _) => Duration::ZERO,
            (Err(_), Some((exact, _))) => exact.elapsed(),
            (Err(_), None) => {
                Duration::from_nanos(instance.coarse_time().saturating_sub(began.coarse))
            }
        };
        called.map_err(|fault| {
            if state.is_none() {
                self.figures.own_faults.fetch_add(1, Relaxed);
                self.own_fault.set(Some(self.generation.get()));
            }
            self.broke(inner, &fault, cost);
            Broken::Fault(fault)
        })
    }

    /// An exchange was lost by the end of an instance, and is counted: the fault by itself no more.
    pub(super) fn was_lost(&self, generation: u64) {
        if self.own_fault.get() == Some(generation) {
            self.own_fault.set(None);
            self.figures.own_faults.fetch_sub(1, Relaxed);
        }
    }

    fn is_empty(&self) -> bool {
        self.inner.try_borrow().is_ok_and(|inner| inner.instance.is_none())
    }

    /// Starts the instance, if there is none and it may be.
    fn revive(self: &Rc<Self>) {
        let Ok(mut inner) = self.inner.try_borrow_mut() else { return };
        if inner.instance.is_none() && inner.restart.is_due(self.now()) {
            // What it does wrong is logged, and exchanges find out by themselves.
            drop(self.start(&mut inner));
        }
    }

    fn now(&self) -> Duration {
        self.surroundings.started.elapsed()
    }

    fn start(self: &Rc<Self>, inner: &mut Inner) -> Result<(), Broken> {
        let began = Instant::now();
        let now = began.saturating_duration_since(self.surroundings.started);
        if !inner.restart.is_due(now) {
            return Err(Broken::Pausing);
        }
        self.generation.set(self.generation.get() + 1);
        let host = ProxyHost::new(self, self.surroundings.clone(), self.current.clone());
        match Instance::start(&self.linked, host) {
            Ok(instance) => {
                inner.restart.started(now, began.elapsed());
                self.figures.instances.fetch_add(1, Relaxed);
                self.figures.restarts.fetch_add(u64::from(inner.used), Relaxed);
                inner.used = true;
                inner.instance = Some(instance);
                self.count_memory(inner);
                Ok(())
            }
            Err(error) => {
                self.count(match &error {
                    StartError::Fault(fault) => fault.kind,
                    _ => FaultKind::Trap,
                });
                let pause = inner.restart.broke(self.now(), began.elapsed());
                let (label, version) = (&self.label, &self.version);
                tracing::error!(
                    "plugin {label} ({version}) does not start: {error}; tried again in {pause:?}"
                );
                Err(Broken::Start(error.to_string()))
            }
        }
    }

    /// Throws the instance away. Its streams tell those that they belong to.
    fn broke(&self, inner: &mut Inner, fault: &Fault, cost: Duration) {
        self.count(fault.kind);
        let pause = inner.restart.broke(self.now(), cost);
        let (label, version, backtrace) = (&self.label, &self.version, fault.backtrace.join(" < "));
        tracing::error!(%backtrace, "plugin {label} ({version}) broke: {fault}; started again in {pause:?}");
        self.remove(inner);
    }

    fn remove(&self, inner: &mut Inner) {
        self.tally.tell(&self.figures);
        // What is left of it belongs to no instance from here on.
        self.generation.set(self.generation.get() + 1);
        if inner.instance.take().is_some() {
            self.figures.instances.fetch_sub(1, Relaxed);
            self.count_memory(inner);
        }
    }

    fn count(&self, kind: FaultKind) {
        let counter = match kind {
            FaultKind::Deadline => &self.figures.overruns,
            _ => &self.figures.traps,
        };
        counter.fetch_add(1, Relaxed);
    }

    fn count_memory(&self, inner: &mut Inner) {
        let bytes = inner.instance.as_ref().map_or(0, Instance::memory_bytes);
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        if bytes != inner.memory_bytes {
            self.figures.memory_bytes.fetch_add(bytes - inner.memory_bytes, Relaxed);
            inner.memory_bytes = bytes;
        }
    }

    /// An exchange has ended well.
    pub(super) fn served(&self) {
        if let Ok(mut inner) = self.inner.try_borrow_mut() {
            inner.restart.served();
            if self.tally.is_due() {
                self.tally.tell(&self.figures);
                self.count_memory(&mut inner);
            }
        }
    }

    /// Adds what happened of late to what all workers share.
    fn tell(&self) {
        self.tally.tell(&self.figures);
        if let Ok(mut inner) = self.inner.try_borrow_mut() {
            self.count_memory(&mut inner);
        }
    }

    /// Nobody uses the plugin any more: it is told so. False: it has something left to do.
    fn shut_down(&self) -> bool {
        let Ok(mut inner) = self.inner.try_borrow_mut() else { return true };
        let Some(instance) = &mut inner.instance else { return true };
        self.told_its_end.set(true);
        // Nobody is left for whom it could make a difference.
        instance.shut_down().unwrap_or_else(|fault| {
            self.broke_at_its_end(&fault);
            true
        })
    }

    fn waits_for_done(&self) -> bool {
        let Ok(inner) = self.inner.try_borrow() else { return false };
        inner.instance.as_ref().is_some_and(Instance::waits_for_done)
    }

    fn end(&self) {
        if !self.told_its_end.get() {
            self.shut_down();
        }
        let Ok(mut inner) = self.inner.try_borrow_mut() else { return };
        if let Some(instance) = inner.instance.as_mut().filter(|instance| !instance.is_broken())
            && let Err(fault) = instance.delete_root()
        {
            self.broke_at_its_end(&fault);
        }
        self.remove(&mut inner);
    }

    fn broke_at_its_end(&self, fault: &Fault) {
        tracing::warn!("plugin {} ({}) broke at its end: {fault}", self.label, self.version);
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.end();
    }
}

impl fmt::Debug for Seats {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Seats").finish_non_exhaustive()
    }
}
