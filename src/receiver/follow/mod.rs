//! Follows the cluster: knows its members, and which of them to stream from.
//!
//! A scout per member asks who it is, so that a silent one holds up nobody ([`scout`]); what they say is judged in one place
//! ([`choose`]), by histories and not by roles alone. While nothing streams the members are asked again and again; while
//! something does, the others are asked now and then, since a new primary may come into being although the old one answers.

mod choose;
mod conflict;
mod lender;
mod loyalty;
mod scout;
mod source;
mod twins;
mod witness;

use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};
use wal::{Lsn, SystemIdentifier, TimelineId};

pub(super) use choose::{Choice, Decision, Leaning, Ours, Seen};
pub(crate) use loyalty::Loyalty;
pub(crate) use source::meet;
pub(super) use source::{Source, elsewhere};
pub use witness::Witness;

use self::choose::choose;
use self::scout::{Order, Report, scout};
use self::twins::{Twins, are_one};
use crate::primary::{ConnectOptions, Deadlines, Host, HostFailure, PgError, SlotName};

/// How long a round waits for members that have not answered.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long a round goes on waiting for the others once a primary has answered that we could follow.
const COURTESY: Duration = Duration::from_millis(250);
/// How often the others are asked while a primary streams.
const WATCH_EVERY: Duration = Duration::from_secs(2);
/// The same while a standby streams: the next primary is to be found soon.
const WATCH_STANDBY_EVERY: Duration = Duration::from_millis(500);
/// Longest wait for a member's answer to one question.
const REPLY: Duration = Duration::from_secs(10);
/// So many members are known at most.
const MOST_MEMBERS: usize = 32;
/// How often a member is asked that turned us away; only a person can change that.
const WATCH_REFUSER_EVERY: Duration = Duration::from_secs(30);

/// The members of one cluster and what they said last.
#[derive(Debug)]
pub(super) struct Follower {
    options: ConnectOptions,
    witness: Witness,
    members: Vec<Member>,
    reports: mpsc::UnboundedReceiver<Report>,
    reporter: mpsc::UnboundedSender<Report>,
    round: u64,
    /// Members that tell the same of themselves: whether they are one server.
    twins: Twins,
    /// The source is asked in each round: its second connection is kept.
    asks_source: bool,
    /// Ended with the follower.
    scouts: JoinSet<()>,
}

#[derive(Debug)]
struct Member {
    host: Host,
    /// How it is connected to, it alone.
    options: ConnectOptions,
    /// The same under another name.
    to_watch: ConnectOptions,
    orders: watch::Sender<Order>,
    /// Which question it answered last.
    answered: u64,
    seen: Option<Seen>,
    failure: Option<PgError>,
    /// When to ask it next while something streams.
    due: Instant,
}

impl Follower {
    /// Knows the members of the conninfo and those that the witness names; nothing is asked yet.
    pub(super) fn new(options: ConnectOptions, witness: Witness) -> Self {
        let (reporter, reports) = mpsc::unbounded_channel();
        let scouts = JoinSet::new();
        let mut follower = Self {
            options,
            witness,
            members: Vec::new(),
            reports,
            reporter,
            round: 0,
            twins: Twins::default(),
            asks_source: false,
            scouts,
        };
        for (number, host) in follower.options.conninfo.hosts().to_vec().into_iter().enumerate() {
            let options = ConnectOptions { host: Some(number), ..follower.options.clone() };
            follower.add(host, options);
        }
        follower.ask_the_witness();
        follower
    }

    /// Members that the witness names and the conninfo does not belong to the cluster as well. None is forgotten: one that was
    /// taken down does not answer.
    fn ask_the_witness(&mut self) {
        for host in self.witness.hosts() {
            if self.number_of(&host).is_none() && self.members.len() < MOST_MEMBERS {
                let conninfo = self.options.conninfo.clone().for_host(host.clone());
                let options = ConnectOptions { conninfo, host: Some(0), ..self.options.clone() };
                self.add(host, options);
            }
        }
    }

    fn add(&mut self, host: Host, options: ConnectOptions) {
        // Another name than the stream's: nobody is to take an idle connection for a synchronous standby.
        let name = options.conninfo.application_name().unwrap_or(&options.application_name);
        let name = format!("{name}_watch");
        let (orders, received) = watch::channel(Order::default());
        let to_watch = ConnectOptions {
            conninfo: options.conninfo.clone().with_application_name(&name),
            deadlines: Deadlines { reply: REPLY, ..options.deadlines },
            ..options.clone()
        };
        self.scouts.spawn(scout(self.members.len(), to_watch.clone(), received, self.reporter.clone()));
        let due = Instant::now();
        self.members.push(Member { host, options, to_watch, orders, answered: 0, seen: None, failure: None, due });
    }

    /// The number of the member with this host and port.
    pub(super) fn number_of_text(&self, text: &str) -> Option<usize> {
        self.members.iter().position(|member| member.host.to_string() == text)
    }

    fn number_of(&self, host: &Host) -> Option<usize> {
        self.members.iter().position(|member| member.host.name == host.name && member.host.port == host.port)
    }

    /// The options to connect to one member. With a single host the conninfo decides alone, `target_session_attrs` included.
    pub(super) fn options_for(&self, member: usize) -> ConnectOptions {
        match self.members.get(member) {
            Some(member) if self.members.len() > 1 => member.options.clone(),
            _ => self.options.clone(),
        }
    }

    /// The same for a connection that only asks: under another name than the stream's.
    pub(super) fn options_to_watch(&self, member: usize) -> ConnectOptions {
        self.members.get(member).map_or_else(|| self.options.clone(), |member| member.to_watch.clone())
    }

    /// Members other than this one that said nothing when they were asked last, and may answer again by themselves.
    pub(super) fn silent(&self, but: usize) -> Vec<String> {
        let silent =
            |member: &Member| member.seen.is_none() && member.failure.as_ref().is_none_or(PgError::is_transient);
        let others = self.members.iter().enumerate().filter(|(number, member)| *number != but && silent(member));
        others.map(|(_, member)| member.host.to_string()).collect()
    }

    /// How many members there are. With a single one there is nothing to choose, and nobody is asked.
    pub(super) fn count(&self) -> usize {
        self.members.len()
    }

    /// A member's host and port.
    pub(super) fn host(&self, member: usize) -> String {
        self.members.get(member).map_or_else(String::new, |member| member.host.to_string())
    }

    /// What a member said when it was asked last.
    pub(super) fn seen(&self, member: usize) -> Option<&Seen> {
        self.members.get(member)?.seen.as_ref()
    }

    /// Asks all members now and decides. Cancel-safe: an answer that comes late counts in the next round.
    pub(super) async fn look(&mut self, ours: &Ours, leaning: Leaning) -> Decision {
        self.ask_the_witness();
        let everybody: Vec<usize> = (0..self.members.len()).collect();
        self.ask(&everybody);
        let deadline = Instant::now() + PATIENCE;
        let mut until = deadline;
        while self.members.iter().any(|member| member.answered < self.round) {
            match timeout_at(until, self.reports.recv()).await {
                Ok(Some(report)) => self.note(report),
                Ok(None) | Err(_) => break,
            }
            if matches!(self.decide(ours, leaning).choice, Choice::Primary(_)) {
                until = until.min(Instant::now() + COURTESY);
            }
        }
        for member in self.members.iter_mut().filter(|member| member.answered < self.round) {
            member.seen = None;
        }
        self.tell_apart().await;
        self.decide(ours, leaning)
    }

    /// Finds out which of the members that claim the same are one server under two names. Cancel-safe.
    async fn tell_apart(&mut self) {
        for (one, other) in self.twins.to_ask(&self.seen_all(), Instant::now()) {
            // Nobody else's name, and nobody's twice: two of us may ask at the same moment.
            let Ok(name) = SlotName::new(format!("pgvault_asks_{:016x}", rand::random::<u64>())) else { continue };
            let answer = are_one(&self.members[one].to_watch, &self.members[other].to_watch, &name).await;
            self.twins.note((one, other), answer, Instant::now());
        }
    }

    /// Waits until the others are to be looked at while `source` streams. Cancel-safe.
    pub(super) async fn next_watch(&mut self, source: Source) {
        if !self.asks_source {
            // It needs no second connection.
            self.rest(source.member);
        }
        let every = if source.standby { WATCH_STANDBY_EVERY } else { WATCH_EVERY };
        tokio::select! {
            () = tokio::time::sleep(every) => {}
            () = self.witness.changed() => {}
        }
    }

    /// One look at the others; at the source too when they give a reason to, or when it is quiet.
    pub(super) async fn watch_round(&mut self, source: Source, quiet: bool, ours: &Ours) -> Decision {
        let Source { member: source, standby, .. } = source;
        self.ask_the_witness();
        let leaning = Leaning { loyal_to: Some(source), standby_will_do: true, ..self.leaning() };
        let now = Instant::now();
        let others: Vec<usize> =
            (0..self.members.len()).filter(|&member| member != source && self.members[member].due <= now).collect();
        self.ask(&others);
        let deadline = now + PATIENCE;
        while others.iter().any(|&member| self.members[member].answered < self.round) {
            match timeout_at(deadline, self.reports.recv()).await {
                Ok(Some(report)) => self.note(report),
                Ok(None) | Err(_) => break,
            }
        }
        for &member in &others {
            let member = &mut self.members[member];
            if member.answered < self.round {
                member.seen = None;
            }
            let turned_away = member.failure.as_ref().is_some_and(|error| !error.is_transient());
            member.due = now + if turned_away { WATCH_REFUSER_EVERY } else { Duration::ZERO };
        }
        let somebody_writes = others.iter().any(|&member| self.seen(member).is_some_and(|seen| !seen.in_recovery));
        self.asks_source = standby || somebody_writes || quiet;
        if self.asks_source {
            // Is the source still there, and a primary? Its stream may be silent for long before we would know. It is given
            // a second chance to say so: to leave it for another primary cannot be undone.
            let decision = self.look(ours, leaning).await;
            if self.seen(source).is_some() {
                return decision;
            }
            let decision = self.look(ours, leaning).await;
            let failure = self.members[source].failure.as_ref();
            let runs = failure.is_some_and(PgError::is_of_a_running_server);
            return if runs && !standby { decision.staying_with(source) } else { decision };
        }
        Decision { choice: Choice::Primary(source), rivals: Vec::new(), strangers: Vec::new() }
    }

    /// A member other than those `asked` that should have the byte at `start` of `timeline`, by what each said last.
    pub(super) fn lender(
        &self,
        asked: &[usize],
        cluster: SystemIdentifier,
        timeline: TimelineId,
        start: Lsn,
    ) -> Option<usize> {
        lender::lender(&self.seen_all(), asked, cluster, timeline, start)
    }

    /// What a second witness says, and nothing else.
    pub(super) fn leaning(&self) -> Leaning {
        let leader = self.witness.leader().and_then(|host| self.number_of(&host));
        Leaning { leader, ..Leaning::default() }
    }

    /// Returns when the second witness says something new. Cancel-safe.
    pub(super) async fn witness_changed(&mut self) {
        self.witness.changed().await;
        self.ask_the_witness();
    }

    /// Why each member could not be asked, or is not streamed from, as one error.
    pub(super) fn nobody(&mut self) -> PgError {
        let failures = self.members.iter_mut().map(|member| {
            let host = member.host.to_string();
            let role = |seen: &Seen| PgError::WrongRole {
                host: host.clone(),
                in_recovery: seen.in_recovery,
                read_only: seen.in_recovery,
            };
            let late = || PgError::Unreachable {
                host: host.clone(),
                reason: format!("no answer within {} s", PATIENCE.as_secs()),
            };
            let error = member.failure.take().or_else(|| member.seen.as_ref().map(role)).unwrap_or_else(late);
            HostFailure { host, error }
        });
        PgError::NoSuitableHost { wanted: crate::primary::TargetSessionAttrs::Primary, failures: failures.collect() }
    }

    fn decide(&self, ours: &Ours, leaning: Leaning) -> Decision {
        let wanted = self.options.conninfo.target_session_attrs();
        choose(&self.seen_all(), ours, leaning, &self.twins.apart(), wanted)
    }

    fn seen_all(&self) -> Vec<Option<&Seen>> {
        self.members.iter().map(|member| member.seen.as_ref()).collect()
    }

    fn ask(&mut self, members: &[usize]) {
        self.round += 1;
        for &member in members {
            self.members[member].orders.send_replace(Order { round: self.round, rest: false });
        }
    }

    /// A member that streams needs no second connection.
    fn rest(&mut self, member: usize) {
        if let Some(member) = self.members.get(member) {
            member.orders.send_replace(Order { round: self.round, rest: true });
        }
    }

    fn note(&mut self, report: Report) {
        let Some(member) = self.members.get_mut(report.member) else { return };
        member.answered = report.round;
        match report.seen {
            Ok(seen) => {
                member.seen = Some(seen);
                member.failure = None;
            }
            Err(error) => {
                member.seen = None;
                member.failure = Some(error);
            }
        }
    }
}
