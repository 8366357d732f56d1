//! What an instance has around it: clocks, logs, timers, queues, calls to services.

use std::{
    borrow::Cow,
    cell::{Cell, OnceCell, RefCell},
    collections::VecDeque,
    rc::{Rc, Weak},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use leno_wasm_host::{
    BufferType, CallToken, GrpcCall, Host, HttpCall, Instance, LogLevel, QueueListener, Status,
};
use rand::Rng;
use tokio::{
    sync::Notify,
    task::AbortHandle,
    time::{Instant as Moment, MissedTickBehavior, interval_at},
};

use super::{
    calls::Calls,
    log_budget::{Line, LogBudget},
    pace::Pace,
    property,
    seat::{Seat, Surroundings},
    state::State,
    stream::PluginStream,
};

/// The shortest period of a timer: each tick may take the worker as long as a callback may.
const MIN_TICK: Duration = Duration::from_millis(5);
/// News of queues that a plugin has not been told yet. Shared queues together hold as many items.
const MAX_NEWS: usize = 10_000;
/// Under which plugins' lines are found in the log.
const TARGET: &str = "plugin";

/// One instance's host.
pub(super) struct ProxyHost {
    label: Arc<str>,
    /// Where the instance runs, and which of those that ran there it is. Nowhere when it is only tried.
    seat: Weak<Seat>,
    generation: u64,
    surroundings: Option<Rc<Surroundings>>,
    current: Rc<RefCell<Option<Rc<State>>>>,
    started: Instant,
    timer: Rc<Timer>,
    ticking: Option<AbortHandle>,
    queues: Arc<Told>,
    listening: OnceCell<AbortHandle>,
    calls: Calls,
    logged: LogBudget,
    /// Where it is only tried: what it says meanwhile, for whoever wants to know why it does not start.
    said: Option<Said>,
}

/// The timer of an instance: one task, however often it is set.
#[derive(Debug, Default)]
struct Timer {
    period: Cell<Option<Duration>>,
    set: Notify,
}

/// The last lines that a plugin logged. Clones are the same lines.
#[derive(Clone, Debug, Default)]
pub(super) struct Said(Rc<RefCell<VecDeque<(LogLevel, String)>>>);

impl Said {
    /// Lines that are kept, and characters of each: why a configuration is refused is mostly said last, in one line.
    const MAX_LINES: usize = 3;
    const MAX_LINE: usize = 200;

    fn hear(&self, level: LogLevel, message: &str) {
        let Ok(mut lines) = self.0.try_borrow_mut() else { return };
        // Nothing that is said afterwards makes a warning less worth knowing.
        let mild = |(level, _): &(LogLevel, String)| *level < LogLevel::Warn;
        if level < LogLevel::Warn && lines.iter().any(|line| !mild(line)) {
            return;
        }
        if level >= LogLevel::Warn {
            lines.retain(|line| !mild(line));
        }
        if lines.len() >= Self::MAX_LINES {
            lines.pop_front();
        }
        lines.push_back((level, message.trim().chars().take(Self::MAX_LINE).collect()));
    }

    /// The warnings and errors; without any, whatever was said last.
    pub(super) fn text(&self) -> String {
        let Ok(lines) = self.0.try_borrow() else { return String::new() };
        let mild = lines.back().is_some_and(|(level, _)| *level < LogLevel::Warn);
        let skipped = if mild { lines.len().saturating_sub(1) } else { 0 };
        let lines: Vec<&str> = lines.iter().skip(skipped).map(|(_, line)| &**line).collect();
        lines.join("; ")
    }
}

/// What queues know of an instance: as long as the instance is there. The task that tells it may end later.
#[derive(Debug, Default)]
struct Told(Arc<News>);

impl QueueListener for Told {
    fn ready(&self, queue: u32) {
        self.0.ready(queue);
    }
}

/// News of queues, from any thread to the one where the instance lives.
#[derive(Debug, Default)]
struct News {
    ready: Mutex<VecDeque<u32>>,
    told: Notify,
}

impl News {
    fn ready(&self, queue: u32) {
        let mut ready = self.ready.lock().unwrap_or_else(PoisonError::into_inner);
        if ready.len() < MAX_NEWS {
            ready.push_back(queue);
        }
        drop(ready);
        self.told.notify_one();
    }

    fn next(&self) -> Option<u32> {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }
}

impl ProxyHost {
    pub(super) fn new(
        seat: &Rc<Seat>,
        surroundings: Rc<Surroundings>,
        current: Rc<RefCell<Option<Rc<State>>>>,
    ) -> Self {
        let generation = seat.generation();
        let calls = Calls::new(Rc::downgrade(seat), generation, surroundings.callouts.get());
        Self {
            label: seat.label().clone(),
            seat: Rc::downgrade(seat),
            generation,
            started: surroundings.started,
            surroundings: Some(surroundings),
            current,
            timer: Rc::default(),
            ticking: None,
            queues: Arc::default(),
            listening: OnceCell::new(),
            calls,
            logged: LogBudget::default(),
            said: None,
        }
    }

    /// For an instance that is only to show that it starts: its timers never fire and its calls are never answered.
    pub(super) fn on_trial(label: &str, said: Said) -> Self {
        Self {
            label: label.into(),
            seat: Weak::new(),
            generation: 0,
            surroundings: None,
            current: Rc::default(),
            started: Instant::now(),
            timer: Rc::default(),
            ticking: None,
            queues: Arc::default(),
            listening: OnceCell::new(),
            calls: Calls::on_trial(),
            logged: LogBudget::default(),
            said: Some(said),
        }
    }

    #[cfg(test)]
    pub(super) fn timers(&self) -> usize {
        Rc::strong_count(&self.timer) - 1
    }

    /// A call is over.
    pub(super) fn forget(&mut self, token: CallToken) {
        self.calls.forget(token);
    }

    fn request_id(&self) -> Option<String> {
        let current = self.current.try_borrow().ok()?;
        let id = current.as_ref()?.facts.as_ref()?.request_id.as_ref()?;
        Some(String::from_utf8_lossy(id.as_bytes()).into_owned())
    }

    /// Tells the plugin of queues, on the thread where it lives.
    fn listen(&self) -> AbortHandle {
        let (seat, generation) = (self.seat.clone(), self.generation);
        let news = self.queues.0.clone();
        let listening = tokio::task::spawn_local(async move {
            let mut pace = Pace::default();
            loop {
                news.told.notified().await;
                while let Some(queue) = news.next() {
                    let Some(seat) = seat.upgrade() else { return };
                    let began = Instant::now();
                    let told = seat
                        .call_again(generation, None, 1, |instance| instance.on_queue_ready(queue));
                    if told.is_err() {
                        return;
                    }
                    drop(seat);
                    // A plugin that puts in what it takes out has always something to be told.
                    pace.after(began).await;
                }
            }
        });
        listening.abort_handle()
    }
}

/// Ticks as the timer says, which a tick, too, may set anew.
async fn tick(timer: Rc<Timer>, seat: Weak<Seat>, generation: u64) {
    let mut pace = Pace::default();
    loop {
        let Some(period) = timer.period.get() else {
            timer.set.notified().await;
            continue;
        };
        let mut ticks = interval_at(Moment::now() + period, period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = timer.set.notified() => break,
                _ = ticks.tick() => {}
            }
            let Some(seat) = seat.upgrade() else { return };
            let began = Instant::now();
            if seat.call_again(generation, None, 1, Instance::on_tick).is_err() {
                return;
            }
            drop(seat);
            pace.after(began).await;
        }
    }
}

impl Drop for ProxyHost {
    fn drop(&mut self) {
        for task in self.ticking.iter().chain(self.listening.get()) {
            task.abort();
        }
    }
}

impl Host for ProxyHost {
    type Stream = PluginStream;

    fn log(&mut self, level: LogLevel, message: &[u8]) {
        match self.logged.line(self.started.elapsed(), message.len()) {
            Line::Written { dropped: 0 } => {}
            Line::Written { dropped } => {
                tracing::warn!(
                    "plugin {}: {dropped} lines were dropped: it logs too much",
                    self.label
                );
            }
            Line::Dropped => return,
        }
        let (label, message) = (&*self.label, String::from_utf8_lossy(message));
        if let Some(said) = &self.said {
            said.hear(level, &message);
        }
        let request_id = self.request_id();
        let request_id = request_id.as_deref();
        match level {
            LogLevel::Trace => tracing::trace!(target: TARGET, request_id, "{label}: {message}"),
            LogLevel::Debug => tracing::debug!(target: TARGET, request_id, "{label}: {message}"),
            LogLevel::Info => tracing::info!(target: TARGET, request_id, "{label}: {message}"),
            LogLevel::Warn => tracing::warn!(target: TARGET, request_id, "{label}: {message}"),
            LogLevel::Error | LogLevel::Critical => {
                tracing::error!(target: TARGET, request_id, "{label}: {message}");
            }
        }
    }

    fn log_level(&self) -> LogLevel {
        use tracing::{Level, enabled};
        if enabled!(target: TARGET, Level::TRACE) {
            LogLevel::Trace
        } else if enabled!(target: TARGET, Level::DEBUG) {
            LogLevel::Debug
        } else if enabled!(target: TARGET, Level::INFO) {
            LogLevel::Info
        } else if enabled!(target: TARGET, Level::WARN) {
            LogLevel::Warn
        } else {
            LogLevel::Error
        }
    }

    fn now(&mut self) -> u64 {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
    }

    fn monotonic(&mut self) -> u64 {
        u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    fn random(&mut self, target: &mut [u8]) {
        rand::rng().fill_bytes(target);
    }

    fn set_tick_period(&mut self, period: Option<Duration>) {
        if self.surroundings.is_none() {
            return;
        }
        self.timer.period.set(period.map(|period| period.max(MIN_TICK)));
        self.timer.set.notify_one();
        if self.ticking.is_none() && period.is_some() {
            let ticking = tick(self.timer.clone(), self.seat.clone(), self.generation);
            self.ticking = Some(tokio::task::spawn_local(ticking).abort_handle());
        }
    }

    fn http_call(&mut self, token: CallToken, call: HttpCall<'_>) -> Result<(), Status> {
        self.calls.http(token, &call)
    }

    fn grpc_call(&mut self, token: CallToken, call: GrpcCall<'_>) -> Result<(), Status> {
        self.calls.grpc(token, &call, true)
    }

    fn grpc_stream(&mut self, token: CallToken, call: GrpcCall<'_>) -> Result<(), Status> {
        self.calls.grpc(token, &call, false)
    }

    fn grpc_send(&mut self, token: CallToken, message: &[u8], end: bool) -> Result<(), Status> {
        self.calls.send(token, message, end)
    }

    fn grpc_end(&mut self, token: CallToken, cancel: bool) {
        self.calls.end(token, cancel);
    }

    fn property(&self, path: &[u8]) -> Result<Cow<'_, [u8]>, Status> {
        match &self.surroundings {
            Some(surroundings) => property::of_node(&surroundings.node, path),
            None => Err(Status::NotFound),
        }
    }

    fn call_foreign_function(
        &mut self,
        _stream: Option<&mut PluginStream>,
        _name: &[u8],
        _arguments: &[u8],
    ) -> Result<Vec<u8>, Status> {
        Err(Status::NotFound)
    }

    fn may_grow(&mut self, stream: &PluginStream, buffer: BufferType, by: usize) -> bool {
        let Some((seat, counted)) = self.seat.upgrade().zip(stream.counted(buffer)) else {
            return true;
        };
        let (before, now) = (counted.get(), counted.get().saturating_add(by));
        let may = seat.holds(before, now);
        if may {
            counted.set(now);
        } else {
            seat.holds(now, before);
        }
        may
    }

    fn queue_listener(&self) -> Arc<dyn QueueListener> {
        if self.surroundings.is_some() {
            self.listening.get_or_init(|| self.listen());
        }
        self.queues.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_what_a_plugin_says_the_warnings_count() {
        let said = Said::default();
        assert_eq!(said.text(), "");
        said.hear(LogLevel::Info, "starting");
        said.hear(LogLevel::Debug, " reading\n");
        assert_eq!(said.text(), "reading");
        said.hear(LogLevel::Error, "missing field `service`");
        said.hear(LogLevel::Info, "good bye");
        assert_eq!(said.text(), "missing field `service`");
        (0..5).for_each(|number| said.hear(LogLevel::Warn, &number.to_string()));
        assert_eq!(said.text(), "2; 3; 4");
        said.hear(LogLevel::Critical, &"ä".repeat(5_000));
        assert_eq!(said.text().chars().count(), Said::MAX_LINE + "3; 4; ".len());
    }
}
