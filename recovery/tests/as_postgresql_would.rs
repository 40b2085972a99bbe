//! Does PostgreSQL, given what a plan says, stop where the plan says it does?
//!
//! A small model of WAL with branches, holes and clocks that go back; a model of PostgreSQL's recovery, written from
//! xlogrecovery.c and knowing nothing of plans; and random requests.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use recovery::{
    Answer, Backup, BackupKind, BackupStatus, Catalog, CommitsAround, Facts, FileSource, LastSettled, NoPlan,
    NotRecoverable, Note, Question, RecordSpan, RecoveryPlan, RecoveryRequest, RecoveryTarget, StopAt, TargetAction,
    TargetTimeline, WalEnd, Window, plan, window,
};
use wal::{
    Coverage, HistoryEntry, Lsn, PgTime, RestorePoint, SegmentNumber, SegmentSize, SystemIdentifier, TimelineHistory,
    TimelineId, WalRange, XactEnd, XactMark,
};

const MIB: u64 = 1 << 20;

#[derive(Clone, Debug, PartialEq)]
enum Kind {
    Xact { xid: u32, time: i64, commit: bool },
    Point { name: String, time: i64 },
    Other,
}

#[derive(Clone, Debug, PartialEq)]
struct Record {
    lsn: u64,
    end: u64,
    kind: Kind,
}

/// A cluster: per timeline all records from the beginning of the log, and up to where bytes of it were ever written.
#[derive(Clone, Debug)]
struct World {
    catalog: Catalog,
    logs: BTreeMap<u32, Vec<Record>>,
}

fn timeline(number: u32) -> TimelineId {
    TimelineId::new(number).unwrap()
}

fn segment_size() -> SegmentSize {
    SegmentSize::new(MIB).unwrap()
}

/// A record's length, kind and clock step.
type RecordRecipe = (u64, u8, i64);

#[derive(Clone, Debug)]
struct Recipe {
    /// Per timeline: fork (index of parent and of the record at which it is left), and the new records.
    branches: Vec<(usize, usize, Vec<RecordRecipe>)>,
    /// Which timelines have nothing in the new timeline's own file yet.
    silent: Vec<bool>,
    /// Segments that are lost, by timeline and number.
    lost: Vec<(usize, u64)>,
    /// Backups: timeline, index of the record before the start and before the stop, start time, damaged.
    backups: Vec<(usize, usize, usize, i64, bool)>,
    /// How many bytes of the end are not stored.
    cut: u64,
}

fn recipe() -> impl Strategy<Value = Recipe> {
    let records = prop::collection::vec((1u64..600, 0u8..10, -30i64..100), 1..14);
    let branch = (any::<usize>(), any::<usize>(), records);
    (
        prop::collection::vec(branch, 1..4),
        prop::collection::vec(prop::bool::weighted(0.2), 4),
        prop::collection::vec((any::<usize>(), 1u64..6), 0..2),
        prop::collection::vec((any::<usize>(), any::<usize>(), 0usize..4, 0i64..900, prop::bool::weighted(0.1)), 0..4),
        0u64..300,
    )
        .prop_map(|(branches, silent, lost, backups, cut)| Recipe { branches, silent, lost, backups, cut })
}

fn build(recipe: &Recipe) -> World {
    let mut logs: BTreeMap<u32, Vec<Record>> = BTreeMap::new();
    let mut histories: BTreeMap<TimelineId, TimelineHistory> = BTreeMap::new();
    let mut begins: BTreeMap<u32, u64> = BTreeMap::new();
    let mut clock = 100;
    let mut next_xid = 700;
    for (index, (parent, at, records)) in recipe.branches.iter().enumerate() {
        let number = u32::try_from(index).unwrap() + 1;
        let mut log = Vec::new();
        let mut position = MIB;
        if index > 0 {
            let parent = u32::try_from(parent % index).unwrap() + 1;
            let trunk = &logs[&parent];
            // A timeline forks from what its parent wrote itself: the fork is not before the parent's own beginning.
            let own = trunk.iter().position(|record| record.lsn >= begins[&parent]).unwrap_or(trunk.len() - 1);
            let at = own + at % (trunk.len() - own);
            log = trunk[..=at].to_vec();
            position = trunk[at].end;
            let mut entries = match histories.get(&timeline(parent)) {
                Some(history) => history.entries().to_vec(),
                None => Vec::new(),
            };
            entries.push(HistoryEntry {
                parent: timeline(parent),
                switch_point: Lsn::new(position),
                reason: String::new(),
            });
            let text: String = entries.iter().map(|e| format!("{}\t{}\tx\n", e.parent, e.switch_point)).collect();
            histories.insert(timeline(number), TimelineHistory::parse(timeline(number), text.as_bytes()).unwrap());
        }
        begins.insert(number, position);
        for &(length, kind, step) in records {
            clock += step;
            let end = position + length * 1024;
            let kind = match kind {
                0..=4 => {
                    next_xid += 1;
                    Kind::Xact { xid: next_xid, time: clock, commit: true }
                }
                5 => Kind::Xact { xid: 777, time: clock, commit: false },
                6 => Kind::Point { name: format!("p{}", clock % 3), time: clock },
                _ => Kind::Other,
            };
            log.push(Record { lsn: position, end, kind });
            position = end;
        }
        logs.insert(number, log);
    }
    let mut coverage = Coverage::new();
    for (&number, log) in &logs {
        let index = number as usize - 1;
        let own_end = log.last().unwrap().end;
        let begin = begins[&number];
        let first = begin / MIB;
        let silent = number > 1 && recipe.silent[index];
        let end = if silent { 0 } else { own_end.saturating_sub(recipe.cut * 1024 / 4).max(begin) };
        let lost: BTreeSet<u64> =
            recipe.lost.iter().filter(|(t, _)| t % logs.len() == index).map(|&(_, n)| first + n - 1).collect();
        for segment in first..=(own_end / MIB) {
            let range = WalRange {
                timeline: timeline(number),
                start: Lsn::new(segment * MIB),
                end: Lsn::new(((segment + 1) * MIB).min(end)),
            };
            if !lost.contains(&segment) && range.start < range.end {
                coverage.insert(range);
            }
        }
    }
    let mut backups = Vec::new();
    for (index, &(on, start, length, started, damaged)) in recipe.backups.iter().enumerate() {
        let number = u32::try_from(on % logs.len()).unwrap() + 1;
        let log = &logs[&number];
        let own = log.iter().position(|record| record.lsn >= begins[&number]).unwrap_or(0);
        let start = own + start % (log.len() - own);
        let stop = (start + length).min(log.len() - 1);
        backups.push(backup(index, number, &log[start], &log[stop], started, damaged));
    }
    let mut catalog = Catalog {
        cluster: "main".to_owned(),
        lineage: "7-1".parse().unwrap(),
        segment_size: segment_size(),
        backups,
        unreadable: Vec::new(),
        coverage,
        tails: Vec::new(),
        histories,
        lost: Vec::new(),
    };
    for index in 0..catalog.backups.len() {
        if catalog.missing_wal_of(&catalog.backups[index]).is_some() {
            catalog.backups[index].status = BackupStatus::WaitingForWal;
        }
    }
    World { catalog, logs }
}

fn backup(index: usize, number: u32, start: &Record, stop: &Record, started: i64, damaged: bool) -> Backup {
    Backup {
        id: format!("20261119T02051{index}-0000").parse().unwrap(),
        status: BackupStatus::Ok,
        kind: BackupKind::Full,
        source: FileSource::Stream,
        system_identifier: SystemIdentifier::new(7),
        postgres_version: 170_000,
        timeline: timeline(number),
        start_lsn: Lsn::new(start.lsn),
        stop_lsn: Lsn::new(stop.end),
        started_at: PgTime::from_micros(started),
        stopped_at: PgTime::from_micros(started),
        size_bytes: 0,
        stored_bytes: 0,
        new_bytes: 0,
        files: 0,
        tablespaces: Vec::new(),
        keep: false,
        damaged,
        annotations: BTreeMap::new(),
        server_settings: BTreeMap::new(),
    }
}

impl World {
    /// Answers by looking at every record.
    fn answer(&self, question: &Question) -> Answer {
        let records = |branch: &TimelineId, from: Lsn, to: Lsn| {
            let log = &self.logs[&branch.get()];
            let to = to.as_u64();
            log.iter().filter(move |r| r.lsn >= from.as_u64() && r.lsn < to && r.end <= to).cloned().collect::<Vec<_>>()
        };
        let xact = |record: &Record| match record.kind {
            Kind::Xact { xid, time, .. } => Some(XactEnd {
                lsn: Lsn::new(record.lsn),
                end: Lsn::new(record.end),
                xid,
                time: PgTime::from_micros(time),
                prepared: false,
            }),
            _ => None,
        };
        let commit = |record: &Record| match record.kind {
            Kind::Xact { commit: true, .. } => xact(record).as_ref().map(XactMark::from),
            _ => None,
        };
        let zero = Lsn::new(0);
        match question {
            Question::MaxTime { branch, lsn } => {
                Answer::Time(records(branch, zero, *lsn).iter().filter_map(xact).map(|x| x.time).max())
            }
            Question::End { branch, from, to } => {
                let last = records(branch, *from, *to).pop();
                Answer::End(WalEnd {
                    last_record: last.as_ref().map(|record| Lsn::new(record.lsn)),
                    end: last.map_or(*from, |record| Lsn::new(record.end)),
                })
            }
            Question::FirstLater { branch, from, to, than, or_equal } => {
                let later = |x: &XactEnd| than.is_none_or(|t| x.time > t || (*or_equal && x.time == t));
                Answer::Xact(records(branch, *from, *to).iter().filter_map(xact).find(later))
            }
            Question::LastXact { branch, from, to } => Answer::Mark(
                records(branch, *from, *to).iter().filter_map(xact).next_back().as_ref().map(XactMark::from),
            ),
            Question::LastSettled { branch, from, to } => {
                let last = records(branch, *from, *to).iter().filter_map(xact).next_back();
                Answer::Settled(last.map_or(LastSettled::Nothing, |x| LastSettled::At(x.lsn)))
            }
            Question::FirstRecord { branch, from, to } => {
                let first = records(branch, *from, *to).into_iter().next();
                Answer::Record(first.map(|r| RecordSpan { lsn: Lsn::new(r.lsn), end: Lsn::new(r.end) }))
            }
            Question::Xid { branch, from, to, xid } => {
                Answer::Xacts(records(branch, *from, *to).iter().filter_map(xact).filter(|x| x.xid == *xid).collect())
            }
            Question::RestorePoint { branch, from, to, name } => {
                let point = |record: &Record| match &record.kind {
                    Kind::Point { name: found, time } if found == name => Some(RestorePoint {
                        lsn: Lsn::new(record.lsn),
                        end: Lsn::new(record.end),
                        time: PgTime::from_micros(*time),
                        name: name.clone(),
                    }),
                    _ => None,
                };
                Answer::RestorePoints(records(branch, *from, *to).iter().filter_map(point).collect())
            }
            Question::CommitsAround { branch, from, to, lsn } => Answer::Commits(CommitsAround {
                before: records(branch, *from, *to)
                    .iter()
                    .filter(|r| r.lsn < lsn.as_u64())
                    .filter_map(commit)
                    .next_back(),
                after: records(branch, *from, *to).iter().filter(|r| r.lsn >= lsn.as_u64()).find_map(commit),
            }),
        }
    }

    fn plan(&self, request: &RecoveryRequest) -> Result<RecoveryPlan, NotRecoverable> {
        let mut facts = Facts::new();
        loop {
            match plan(&self.catalog, request, &facts) {
                Ok(plan) => return Ok(plan),
                Err(NoPlan::NotRecoverable(reason)) => return Err(reason),
                Err(NoPlan::Ask(question)) => facts.learn(question.clone(), self.answer(&question)),
            }
        }
    }

    fn window(&self) -> Window {
        let mut facts = Facts::new();
        loop {
            match window(&self.catalog, &facts) {
                Ok(window) => return window,
                Err(question) => facts.learn(question.clone(), self.answer(&question)),
            }
        }
    }

    /// First byte of segment `number` that recovery towards `target` cannot read, asking for the newest name first; WAL
    /// behind the point where the branch left a timeline is not served.
    fn readable(&self, target: TimelineId, number: u64) -> u64 {
        let history = self.catalog.history(target);
        let start = number * MIB;
        let mut names: Vec<(TimelineId, u64, u64)> = Vec::new();
        let mut begin = 0;
        for entry in history.entries() {
            names.push((entry.parent, begin, entry.switch_point.as_u64()));
            begin = entry.switch_point.as_u64() / MIB;
        }
        names.push((target, begin, u64::MAX));
        for (name, begin_segment, left_at) in names.into_iter().rev() {
            if number < begin_segment {
                continue;
            }
            if let Some(end) = self.catalog.coverage.contiguous_end(name, Lsn::new(start)) {
                return end.as_u64().min(start + MIB).min(left_at).max(start);
            }
        }
        start
    }

    fn is_readable(&self, target: TimelineId, record: &Record) -> bool {
        let (first, last) = (record.lsn / MIB, (record.end - 1) / MIB);
        (first..=last).all(|number| self.readable(target, number) >= record.end.min((number + 1) * MIB))
    }

    /// PostgreSQL's recovery.
    fn recover(&self, backup: &Backup, target: TimelineId, stop: &StopAt, inclusive: bool) -> Outcome {
        let mut replayed = backup.start_lsn.as_u64();
        let consistent = |replayed: u64| replayed >= backup.stop_lsn.as_u64();
        let stopped = |before: u64, replayed: u64| {
            if consistent(replayed) {
                Outcome::Stopped { before }
            } else {
                Outcome::Fatal("before consistent recovery point")
            }
        };
        for record in self.logs[&target.get()].iter().filter(|record| record.lsn >= backup.start_lsn.as_u64()) {
            if !self.is_readable(target, record) {
                break;
            }
            // recoveryStopsBefore
            let before = match (stop, &record.kind) {
                (StopAt::Consistency, _) => consistent(replayed),
                (StopAt::Lsn(lsn), _) => !inclusive && record.lsn >= lsn.as_u64(),
                (StopAt::Xid(wanted), Kind::Xact { xid, .. }) => !inclusive && xid == wanted,
                (StopAt::Time(wanted), Kind::Xact { time, .. }) => {
                    if inclusive {
                        *time > wanted.as_micros()
                    } else {
                        *time >= wanted.as_micros()
                    }
                }
                _ => false,
            };
            if before {
                return stopped(record.lsn, replayed);
            }
            replayed = record.end;
            // recoveryStopsAfter
            let after = match (stop, &record.kind) {
                (StopAt::Consistency, _) => consistent(replayed),
                (StopAt::Lsn(lsn), _) => inclusive && record.lsn >= lsn.as_u64(),
                (StopAt::Xid(wanted), Kind::Xact { xid, .. }) => inclusive && xid == wanted,
                (StopAt::Name(wanted), Kind::Point { name, .. }) => name == wanted,
                _ => false,
            };
            if after {
                return stopped(record.end, replayed);
            }
        }
        match stop {
            StopAt::EndOfWal if consistent(replayed) => Outcome::Promoted { at: replayed },
            StopAt::EndOfWal => Outcome::Fatal("WAL ends before end of online backup"),
            _ => Outcome::Fatal("recovery ended before configured recovery target was reached"),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Outcome {
    /// Records that start before this position were replayed.
    Stopped {
        before: u64,
    },
    Promoted {
        at: u64,
    },
    Fatal(&'static str),
}

/// What must be part of a recovery to `target` on `log`: the number of records, counted from the beginning of the log.
fn wanted(log: &[Record], request: &RecoveryRequest) -> Option<usize> {
    let inclusive = request.inclusive;
    let after = |index: usize| if inclusive { index + 1 } else { index };
    match &request.target {
        RecoveryTarget::Time(wanted) => log.iter().position(|record| match record.kind {
            Kind::Xact { time, .. } => time > wanted.as_micros() || (!inclusive && time == wanted.as_micros()),
            _ => false,
        }),
        RecoveryTarget::Lsn(lsn) => log.iter().position(|record| record.lsn >= lsn.as_u64()).map(after),
        RecoveryTarget::Xid(wanted) => {
            log.iter().rposition(|record| matches!(record.kind, Kind::Xact { xid, .. } if xid == *wanted)).map(after)
        }
        RecoveryTarget::Name(wanted) => log
            .iter()
            .rposition(|record| matches!(&record.kind, Kind::Point { name, .. } if name == wanted))
            .map(|index| index + 1),
        RecoveryTarget::Latest | RecoveryTarget::Immediate => None,
    }
}

/// The transaction ends among the first records: what tells two recoveries apart.
fn xacts(records: &[Record]) -> Vec<&Record> {
    records.iter().filter(|record| matches!(record.kind, Kind::Xact { .. })).collect()
}

/// Checks that PostgreSQL does what the plan says and that it is what was asked for.
fn check(world: &World, request: &RecoveryRequest, plan: &RecoveryPlan) -> Result<(), TestCaseError> {
    let log = &world.logs[&plan.timeline.get()];
    let outcome = world.recover(&plan.backup, plan.timeline, &plan.stop, plan.stop_inclusive);
    let replayed = |before: u64| log.iter().filter(|record| record.lsn < before).count();
    let count = match outcome {
        Outcome::Stopped { before } => {
            prop_assert_eq!(replayed(before), replayed(plan.boundary.as_u64()), "{:?} {:?}", outcome, plan);
            replayed(before)
        }
        Outcome::Promoted { at } => {
            prop_assert_eq!(&plan.stop, &StopAt::EndOfWal);
            prop_assert_eq!(at, plan.boundary.as_u64());
            replayed(at)
        }
        Outcome::Fatal(why) => return Err(TestCaseError::fail(format!("{why}: {plan:?}"))),
    };
    // Transactions are what a person sees; records after the last one may be replayed or not.
    let start = plan.backup.start_lsn.as_u64();
    let readable = log.iter().take_while(|r| r.lsn < start || world.is_readable(plan.timeline, r)).count();
    let known = match request.target {
        RecoveryTarget::Xid(_) | RecoveryTarget::Name(_) => &log[..readable],
        _ => log,
    };
    match (&request.target, wanted(known, request)) {
        (RecoveryTarget::Immediate | RecoveryTarget::Latest, _) => {}
        // The very end of what is stored is accepted, though the record that starts there is not stored.
        (RecoveryTarget::Lsn(lsn), Some(_))
            if plan.notes.contains(&Note::TranslatedLsn { stop: plan.stop.clone() }) =>
        {
            let before = log.iter().take_while(|record| record.lsn < lsn.as_u64()).count();
            prop_assert_eq!(xacts(&log[..count]), xacts(&log[..before]), "{:?}", plan);
        }
        (RecoveryTarget::Lsn(_) | RecoveryTarget::Name(_), Some(wanted)) => {
            prop_assert_eq!(xacts(&log[..count]), xacts(&log[..wanted]), "{:?}", plan);
        }
        (RecoveryTarget::Xid(_), wanted) => {
            // Paused before later locks it stops earlier, at the same transactions; else at the very record.
            let earlier = plan.notes.contains(&Note::BeforeLaterLocks { stop: plan.stop.clone() });
            prop_assert_eq!(wanted.map(|wanted| xacts(&log[..wanted])), Some(xacts(&log[..count])), "{:?}", plan);
            prop_assert!(earlier || Some(count) == wanted, "{:?}", plan);
        }
        (RecoveryTarget::Time(_), wanted) => {
            // Nothing stored is later: all that is stored and readable is wanted.
            let wanted = wanted.unwrap_or(readable).min(readable);
            prop_assert_eq!(xacts(&log[..count]), xacts(&log[..wanted]), "{:?}", plan);
        }
        (RecoveryTarget::Lsn(_) | RecoveryTarget::Name(_), None) => {}
    }
    // Every record that is replayed lies in WAL that the plan names, up to the end that it names.
    for record in &log[..count] {
        if record.end > plan.backup.start_lsn.as_u64() {
            prop_assert!(
                record.end <= plan.wal_end.as_u64() || plan.stop == StopAt::Consistency,
                "{:?} {:?}",
                record,
                plan
            );
            for number in record.lsn.max(plan.backup.start_lsn.as_u64()) / MIB..=(record.end - 1) / MIB {
                let start = SegmentNumber::new(number).start(segment_size());
                prop_assert!(
                    plan.wal.segments().any(|s| s.number(segment_size()).unwrap().start(segment_size()) == start)
                );
            }
        }
    }
    Ok(())
}

fn target() -> impl Strategy<Value = RecoveryTarget> {
    prop_oneof![
        5 => (0i64..1200).prop_map(|time| RecoveryTarget::Time(PgTime::from_micros(time))),
        2 => (MIB..8 * MIB).prop_map(|lsn| RecoveryTarget::Lsn(Lsn::new(lsn / 512 * 512))),
        2 => (700u32..730).prop_map(RecoveryTarget::Xid),
        1 => Just(RecoveryTarget::Xid(777)),
        2 => (0..3).prop_map(|n| RecoveryTarget::Name(format!("p{n}"))),
        1 => Just(RecoveryTarget::Latest),
        1 => Just(RecoveryTarget::Immediate),
    ]
}

fn request() -> impl Strategy<Value = RecoveryRequest> {
    let timeline = prop_oneof![
        3 => Just(None),
        1 => Just(Some(TargetTimeline::Latest)),
        1 => (1u32..4).prop_map(|n| Some(TargetTimeline::Number(timeline(n)))),
    ];
    let action = prop_oneof![2 => Just(None), 1 => Just(Some(TargetAction::Pause))];
    let backup = prop::option::weighted(0.2, (0..4).prop_map(|n| format!("20261119T02051{n}-0000").parse().unwrap()));
    (target(), any::<bool>(), timeline, action, backup).prop_map(|(target, inclusive, timeline, action, backup)| {
        RecoveryRequest { target, inclusive, timeline, action, backup }
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases.max(2000), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_planned_is_what_postgresql_does(recipe in recipe(), requests in prop::collection::vec(request(), 1..6)) {
        let world = build(&recipe);
        for request in &requests {
            if let Ok(plan) = world.plan(request) {
                check(&world, request, &plan)?;
            }
        }
    }

    #[test]
    fn every_advertised_moment_recovers(recipe in recipe(), fractions in prop::collection::vec(0.0f64..=1.0, 3)) {
        let world = build(&recipe);
        for range in world.window().ranges {
            let (from, to) = (range.from.time.as_micros(), range.to.time.as_micros());
            prop_assert!(from <= to && range.from.lsn <= range.to.lsn);
            #[expect(clippy::cast_possible_truncation, clippy::cast_precision_loss, reason = "small numbers")]
            let inside = fractions.iter().map(|f| from + ((to - from) as f64 * f) as i64);
            for time in inside.chain([from, to]) {
                let named = RecoveryRequest {
                    timeline: Some(TargetTimeline::Number(range.branch)),
                    ..RecoveryRequest::new(RecoveryTarget::Time(PgTime::from_micros(time)))
                };
                let plan = world.plan(&named).map_err(|e| TestCaseError::fail(format!("{time} of {range:?}: {e:?}")))?;
                check(&world, &named, &plan)?;
                let unnamed = RecoveryRequest { timeline: None, ..named };
                match world.plan(&unnamed) {
                    Ok(plan) => check(&world, &unnamed, &plan)?,
                    Err(NotRecoverable::AmbiguousTimeline { .. }) => {}
                    Err(reason) => return Err(TestCaseError::fail(format!("{reason:?}"))),
                }
            }
            for lsn in [range.from.lsn, range.to.lsn] {
                for inclusive in [true, false] {
                    let request = RecoveryRequest {
                        timeline: Some(TargetTimeline::Number(range.branch)),
                        inclusive,
                        ..RecoveryRequest::new(RecoveryTarget::Lsn(lsn))
                    };
                    let plan = world.plan(&request).map_err(|e| TestCaseError::fail(format!("{e:?}")))?;
                    check(&world, &request, &plan)?;
                }
            }
        }
    }

    /// With clocks that agree nothing is refused that PostgreSQL could do: a time is refused only if no usable backup
    /// becomes consistent before the first transaction end that is later.
    #[test]
    fn what_is_refused_could_not_be_done(mut recipe in recipe(), times in prop::collection::vec(0i64..1200, 4)) {
        for backup in &mut recipe.backups {
            backup.3 = 0;
        }
        let world = build(&recipe);
        for time in times.into_iter().map(PgTime::from_micros) {
            let request = RecoveryRequest {
                timeline: Some(TargetTimeline::Latest),
                ..RecoveryRequest::new(RecoveryTarget::Time(time))
            };
            let Err(reason) = world.plan(&request) else { continue };
            let Some(live) = recovery::live_timeline(&world.catalog) else { continue };
            let log = &world.logs[&live.get()];
            let Some(stop) = wanted(log, &request).filter(|&stop| world.is_readable(live, &log[stop])) else { continue };
            for backup in &world.catalog.backups {
                let on_branch = recovery::Branch::new(&world.catalog, live).holds(backup);
                let outcome = world.recover(backup, live, &StopAt::Time(time), true);
                let reached = outcome == Outcome::Stopped { before: log[stop].lsn };
                prop_assert!(!(on_branch && reached), "{} refused with {:?}, but {} does it", time, reason, backup.id);
            }
        }
    }
}
