//! Lets a scenario happen.

use std::time::Duration;

use super::{
    caller::{Caller, End, Request},
    clock::Clock,
    figures::{Figures, Seen},
    instance::{Answers, Instance, Job},
    random::Random,
    scenario::Scenario,
    shield::{Shield, Verdict},
};

/// How often results are told, and limits are found anew.
const SAMPLE: Duration = Duration::from_millis(100);
/// To the instance and back, and what it takes to fail.
const ROUND_TRIP: Duration = Duration::from_millis(1);
/// How many threads share the requests.
const WORKERS: usize = 2;

#[derive(Debug)]
enum Event {
    Arrives,
    /// Whoever has waited so long for this request does so no longer.
    TooLate(Job),
    Again(usize),
    Ends(Job, End),
    /// The instance is done with what it began in this life.
    Served(usize, u32, Job),
    /// Somebody has waited too long at the instance's sidecar.
    Due(usize),
    Changes(usize),
    Joins,
    Samples,
}

/// A try of a request.
#[derive(Debug)]
struct Attempt {
    request: usize,
    place: usize,
    begun: Duration,
    over: bool,
}

struct Run<'a> {
    scenario: &'a Scenario,
    caller: &'a mut dyn Caller,
    clock: Clock<Event>,
    random: Random,
    instances: Vec<Instance>,
    requests: Vec<Request>,
    attempts: Vec<Attempt>,
    figures: Figures,
}

/// What comes of `scenario` for those who call through `caller`.
pub fn run(scenario: &Scenario, caller: &mut dyn Caller, seed: u64) -> Figures {
    let instance = |_| {
        let mut instance = Instance::new(scenario.slots, scenario.mean, 0);
        instance.shield = scenario.shielded.then(Shield::new);
        instance
    };
    let mut run = Run {
        scenario,
        caller,
        clock: Clock::new(),
        random: Random::new(seed),
        instances: (0..scenario.instances).map(instance).collect(),
        requests: Vec::new(),
        attempts: Vec::new(),
        figures: Figures::default(),
    };
    run.plan();
    // Whoever came before the end sees it through.
    while let Some(event) = run.clock.next(scenario.length + scenario.patience + SAMPLE) {
        run.happens(event);
    }
    run.tell()
}

impl Run<'_> {
    fn plan(&mut self) {
        for (number, change) in self.scenario.changes.iter().enumerate() {
            self.clock.at(change.at, Event::Changes(number));
        }
        self.clock.at(Duration::ZERO, Event::Samples);
        self.clock.at(Duration::ZERO, Event::Arrives);
        if let Some((at, _)) = self.scenario.joins {
            self.clock.at(at, Event::Joins);
        }
    }

    fn happens(&mut self, event: Event) {
        let now = self.clock.now();
        match event {
            Event::Arrives => self.arrives(),
            Event::Again(request) => self.attempt(request),
            Event::TooLate(job) => self.ends(job, End::TimedOut),
            Event::Ends(job, end) => self.ends(job, end),
            Event::Served(place, life, job) => self.served(place, life, job),
            Event::Due(place) => self.turn(place),
            Event::Changes(number) => self.changes(number),
            Event::Joins => {
                let (_, cold) = self.scenario.joins.unwrap();
                let instance = Instance::new(self.scenario.slots, self.scenario.mean, cold);
                self.instances.push(instance);
                self.caller.endpoints(self.instances.len(), now);
            }
            Event::Samples => {
                self.caller.sample(now);
                for place in 0..self.instances.len() {
                    if let Some(shield) = &mut self.instances[place].shield {
                        shield.adjust(now, &mut self.random);
                        self.turn(place);
                    }
                }
                self.clock.after(SAMPLE, Event::Samples);
            }
        }
    }

    fn arrives(&mut self) {
        let now = self.clock.now();
        if now >= self.scenario.length {
            return;
        }
        let next = Duration::from_secs_f64(1.0 / self.scenario.rate_at(now));
        self.clock.after(self.random.exponential(next), Event::Arrives);
        let mut request = Request {
            worker: self.requests.len() % WORKERS,
            arrived: now,
            deadline: now + self.scenario.patience,
            tried: Vec::new(),
            granted: false,
            probe: None,
            over: None,
        };
        let admitted = self.caller.admit(&mut request, now);
        if !admitted {
            request.over = Some((now, false));
        }
        self.requests.push(request);
        if admitted {
            self.attempt(self.requests.len() - 1);
        }
    }

    fn attempt(&mut self, number: usize) {
        let (now, job) = (self.clock.now(), self.attempts.len());
        let request = &mut self.requests[number];
        let Some(place) = self.caller.pick(request, &mut self.random) else {
            return self.is_over(number, None);
        };
        request.tried.push(place);
        let limit = self.caller.attempt_limit(request.deadline.saturating_sub(now));
        self.attempts.push(Attempt { request: number, place, begun: now, over: false });
        self.figures.attempts.push((now, place));
        self.clock.after(limit, Event::TooLate(job));
        self.reaches(place, job);
    }

    fn reaches(&mut self, place: usize, job: Job) {
        let instance = &mut self.instances[place];
        match instance.behaviour.answers {
            Answers::Gone => self.clock.after(ROUND_TRIP, Event::Ends(job, End::Refused)),
            Answers::Never => {}
            Answers::Yes if self.random.chance(instance.behaviour.failing) => {
                self.clock.after(ROUND_TRIP, Event::Ends(job, End::Status(503)));
            }
            Answers::Yes => match &mut instance.shield {
                None => self.begins(place, job),
                Some(shield) => {
                    let verdicts = shield.arrive(self.clock.now(), job);
                    self.carry_out(place, verdicts);
                    self.turn(place);
                }
            },
        }
    }

    fn begins(&mut self, place: usize, job: Job) {
        let instance = &mut self.instances[place];
        if let Some(time) = instance.take(job, &mut self.random) {
            self.clock.after(time, Event::Served(place, instance.life, job));
        }
    }

    fn served(&mut self, place: usize, life: u32, job: Job) {
        let now = self.clock.now();
        let instance = &mut self.instances[place];
        if instance.life != life {
            return;
        }
        if let Some((next, time)) = instance.done(&mut self.random) {
            self.clock.after(time, Event::Served(place, life, next));
        }
        if let Some(shield) = &mut instance.shield {
            shield.answered(now, job);
            self.turn(place);
        }
        self.ends(job, End::Answered);
    }

    /// Whoever may begin at the instance's sidecar does.
    fn turn(&mut self, place: usize) {
        let Some(shield) = &mut self.instances[place].shield else { return };
        let verdicts = shield.turn(self.clock.now());
        if let Some(due) = shield.due() {
            self.clock.at(due, Event::Due(place));
        }
        self.carry_out(place, verdicts);
    }

    fn carry_out(&mut self, place: usize, verdicts: Vec<Verdict>) {
        for verdict in verdicts {
            match verdict {
                Verdict::Begins(job) => self.begins(place, job),
                Verdict::Refused(job) => self.clock.after(ROUND_TRIP, Event::Ends(job, End::Shed)),
            }
        }
    }

    fn ends(&mut self, job: Job, end: End) {
        let now = self.clock.now();
        let attempt = &mut self.attempts[job];
        if std::mem::replace(&mut attempt.over, true) {
            return;
        }
        let &mut Attempt { request: number, place, begun, .. } = attempt;
        let request = &mut self.requests[number];
        if end == End::TimedOut
            && let Some(shield) = &mut self.instances[place].shield
        {
            shield.cancel(now, job);
        }
        self.caller.ended(request, place, begun, now, end);
        let again = (end != End::Answered && now < request.deadline)
            .then(|| self.caller.again(request, now, end, &mut self.random))
            .flatten();
        match again {
            Some(wait) => self.clock.after(wait, Event::Again(number)),
            None => self.is_over(number, Some(end)),
        }
    }

    fn is_over(&mut self, number: usize, end: Option<End>) {
        let now = self.clock.now();
        let request = &mut self.requests[number];
        request.over = Some((now, end == Some(End::Answered)));
        self.caller.over(request, now, end);
    }

    fn changes(&mut self, number: usize) {
        let change = self.scenario.changes[number];
        let instance = &mut self.instances[change.place];
        instance.behaviour = change.behaviour;
        if change.behaviour.answers == Answers::Gone {
            instance.crash();
            let lost = |attempt: &Attempt| attempt.place == change.place && !attempt.over;
            let lost = self.attempts.iter().enumerate().filter(|(_, attempt)| lost(attempt));
            for job in lost.map(|(job, _)| job).collect::<Vec<_>>() {
                self.ends(job, End::Reset);
            }
        }
    }

    fn tell(self) -> Figures {
        let seen = |request: &Request| {
            let (over, succeeded) = request.over.unwrap_or((Duration::MAX, false));
            let took = over.saturating_sub(request.arrived);
            Seen { arrived: request.arrived, took, succeeded }
        };
        let requests = self.requests.iter().map(seen).collect();
        Figures { requests, ..self.figures }
    }
}
