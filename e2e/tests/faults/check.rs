//! What a history must be like: linearizable, and told to watchers whole and in order.
//!
//! The revisions say in which order the writes took effect, so nothing has to be searched for. The watchers' union is the
//! order of changes; every write must be one of them, exactly once, and every change must be somebody's. Then each operation
//! gets its point in that order: a write its revision, a list its `resourceVersion`, and what looked at one object only the
//! earliest revision at which the object was as answered: not before anything that had been answered when it began, nor from
//! anything on that began when it had been answered. If one order explains everything, the earliest points do: a later one
//! only makes it harder for what comes after.
//!
//! The history must begin with nothing there, and its watchers must have been told of the last change.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap},
    ops::RangeInclusive,
};

use super::history::{
    Change, History, Item, Items, Kind, Moment, Name, Operation, Outcome, Request, Revision, Told, Uid, Value, WatchLog,
};

/// One broken run can break everything after it; the first few say enough.
const MAX_VIOLATIONS: usize = 25;

/// All that is wrong with a history, in words. Nothing, if one sequence of operations explains everything.
pub fn check(history: &History) -> Vec<String> {
    let mut found = Found::default();
    let order = order(&history.watches, &mut found);
    whole(&order, &history.watches, &mut found);
    let versions = Versions::of(&order, &mut found);
    let writes = Writes::place(&order, &versions, &history.operations, &mut found);
    let answered = in_real_time(&versions, &writes, history, &mut found);
    writes.explain_rest(&order, &versions, &answered, &history.operations, &mut found);
    lists(&order, &history.operations, &mut found);
    found.0
}

#[derive(Default)]
struct Found(Vec<String>);

impl Found {
    fn add(&mut self, what: String) {
        if self.0.len() < MAX_VIOLATIONS {
            self.0.push(what);
        }
    }
}

type Order = BTreeMap<Revision, Change>;

/// Everything that any watcher was told, of which no two may differ.
fn order(logs: &[WatchLog], found: &mut Found) -> Order {
    let mut order = Order::new();
    for log in logs {
        let mut last = log.from;
        for (moment, told) in &log.told {
            let again = matches!(told, Told::Change(_)) && told.revision() == last;
            if told.revision() < last || again {
                found.add(format!("watcher {} was told {told:?} at {moment} when it had all up to {last}", log.server));
            }
            last = last.max(told.revision());
            let Told::Change(change) = told else { continue };
            let known = order.entry(change.item.revision).or_insert(*change);
            if known != change {
                found.add(format!("watcher {} was told {change:?} at {moment}, another one {known:?}", log.server));
            }
        }
    }
    order
}

/// No watcher may have missed what another one was told.
fn whole(order: &Order, logs: &[WatchLog], found: &mut Found) {
    for log in logs {
        let mut due = order.range(log.from + 1..).map(|(revision, _)| *revision).peekable();
        for (moment, told) in &log.told {
            let upto = told.revision();
            let missed = |due: &Revision| *due < upto || matches!(told, Told::Progress(_)) && *due == upto;
            while let Some(missed) = due.next_if(missed) {
                let what = &order[&missed];
                found.add(format!("watcher {} was not told {what:?} before {told:?} at {moment}", log.server));
            }
            due.next_if_eq(&upto);
        }
    }
}

/// Each object as it was from one revision to the next; before the first it was not there.
struct Versions(BTreeMap<Name, Vec<(Revision, Option<Item>)>>);

impl Versions {
    fn of(order: &Order, found: &mut Found) -> Versions {
        let mut versions: BTreeMap<Name, Vec<(Revision, Option<Item>)>> = BTreeMap::new();
        let mut born = BTreeSet::new();
        for (&revision, change) in order {
            let past = versions.entry(change.name).or_insert_with(|| vec![(0, None)]);
            let before = past.last().and_then(|(_, item)| *item);
            let right = match (change.kind, before) {
                (Kind::Added, None) => born.insert(change.item.uid),
                (Kind::Modified, Some(before)) => before.uid == change.item.uid,
                (Kind::Deleted, Some(before)) => (before.uid, before.value) == (change.item.uid, change.item.value),
                (Kind::Added, Some(_)) | (Kind::Modified | Kind::Deleted, None) => false,
            };
            if !right {
                found.add(format!("{change:?} came when the object was {before:?}"));
            }
            past.push((revision, (change.kind != Kind::Deleted).then_some(change.item)));
        }
        Versions(versions)
    }

    /// The object just before a revision.
    fn before(&self, name: Name, revision: Revision) -> Option<Item> {
        let past = self.0.get(&name)?;
        past[..past.partition_point(|(from, _)| *from < revision)].last()?.1
    }

    /// The first revision, from `floor` on, at which the object was as it should be.
    fn first(&self, name: Name, floor: Revision, right: impl Fn(Option<Item>) -> bool) -> Option<Revision> {
        let Some(past) = self.0.get(&name) else { return right(None).then_some(floor) };
        let now = past.partition_point(|(from, _)| *from <= floor).saturating_sub(1);
        past[now..].iter().find(|(_, item)| right(*item)).map(|(from, _)| floor.max(*from))
    }
}

/// Which operation made which change.
#[derive(Default)]
struct Writes {
    /// By the operation's place in the history.
    revisions: HashMap<usize, Revision>,
    explained: BTreeSet<Revision>,
    /// Deletes without an answer: nothing in a deletion tells whose it is.
    unknown_deletes: Vec<usize>,
}

impl Writes {
    fn place(order: &Order, versions: &Versions, operations: &[Operation], found: &mut Found) -> Writes {
        let (mut by_value, mut ends): (HashMap<Value, _>, HashMap<Uid, Revision>) = <_>::default();
        for (&revision, change) in order {
            if change.kind == Kind::Deleted {
                ends.insert(change.item.uid, revision);
            } else if let Some(before) = by_value.insert(change.item.value, revision) {
                found.add(format!("{change:?} has the value that was written at revision {before} already"));
            }
        }
        let mut writes = Writes::default();
        for (at, operation) in operations.iter().enumerate() {
            let revision = match (&operation.request, &operation.outcome) {
                (_, Outcome::Wrote(item)) => {
                    if order.get(&item.revision).is_none_or(|change| change.item != *item) {
                        let there = order.get(&item.revision);
                        found.add(format!("{operation:?} was acknowledged, and is not there: {there:?}"));
                        continue;
                    }
                    Some(item.revision)
                }
                (_, Outcome::Deleted(uid)) => match ends.get(uid) {
                    Some(revision) => Some(*revision),
                    None => {
                        found.add(format!("{operation:?} was acknowledged, and the object was never deleted"));
                        continue;
                    }
                },
                (Request::Delete { .. }, Outcome::Unknown) => {
                    writes.unknown_deletes.push(at);
                    None
                }
                (
                    Request::Create { value, .. } | Request::Update { value, .. } | Request::Patch { value, .. },
                    Outcome::Unknown,
                ) => by_value.get(value).copied(),
                _ => None,
            };
            let Some(revision) = revision else { continue };
            if !fits(operation, &order[&revision], versions) {
                let before = versions.before(order[&revision].name, revision);
                found.add(format!("{operation:?} cannot have made {:?} of {before:?}", order[&revision]));
            }
            if !writes.explained.insert(revision) {
                found.add(format!("{operation:?} shares its revision {revision} with another write"));
            }
            writes.revisions.insert(at, revision);
        }
        writes
    }

    /// What is left must be deletions, each by a delete of its own that had begun before anybody saw it.
    fn explain_rest(
        &self,
        order: &Order,
        versions: &Versions,
        answered: &BTreeMap<Revision, Moment>,
        operations: &[Operation],
        found: &mut Found,
    ) {
        let mut rest = Vec::new();
        for (revision, change) in order.iter().filter(|(revision, _)| !self.explained.contains(revision)) {
            let by = answered.range(revision..).next().map_or(Moment::MAX, |(_, moment)| *moment);
            let made = |at: &&usize| {
                let operation = &operations[**at];
                operation.begun < by && fits(operation, change, versions)
            };
            let makers: Vec<usize> = self.unknown_deletes.iter().filter(made).copied().collect();
            rest.push((change, makers));
        }
        let mut taken = HashMap::new();
        for at in 0..rest.len() {
            if !augment(at, &rest, &mut taken, &mut BTreeSet::new()) {
                found.add(format!("nobody asked for {:?}", rest[at].0));
            }
        }
    }
}

/// Whether this operation may have made this change of what was there.
fn fits(operation: &Operation, change: &Change, versions: &Versions) -> bool {
    let before = versions.before(change.name, change.item.revision);
    let named = |at: Option<Revision>| at.is_none() || at == before.map(|item| item.revision);
    match operation.request {
        Request::Create { name, value } => (Kind::Added, name, value) == (change.kind, change.name, change.item.value),
        Request::Update { name, value, at } => {
            (Kind::Modified, name, value) == (change.kind, change.name, change.item.value) && named(at)
        }
        Request::Patch { name, value } => {
            (Kind::Modified, name, value) == (change.kind, change.name, change.item.value)
        }
        Request::Delete { name, at } => (Kind::Deleted, name) == (change.kind, change.name) && named(at),
        Request::Get { .. } | Request::List | Request::Pages => false,
    }
}

/// Gives each change a maker of its own: a maximum matching, by augmenting paths. The first one that fits will not do, as it
/// may be the only one that fits another change.
fn augment(
    at: usize,
    rest: &[(&Change, Vec<usize>)],
    taken: &mut HashMap<usize, usize>,
    tried: &mut BTreeSet<usize>,
) -> bool {
    for &maker in &rest[at].1 {
        if !tried.insert(maker) {
            continue;
        }
        let free = taken.get(&maker).copied().is_none_or(|other| augment(other, rest, taken, tried));
        if free {
            taken.insert(maker, at);
            return true;
        }
    }
    false
}

/// What had been answered when something began comes before it. Gives when each revision, or a later one, was first known.
fn in_real_time(
    versions: &Versions,
    writes: &Writes,
    history: &History,
    found: &mut Found,
) -> BTreeMap<Revision, Moment> {
    let operations = &history.operations;
    let ceilings = Ceilings::of_writes(writes, operations);
    let mut begun: Vec<usize> = (0..operations.len()).collect();
    begun.sort_unstable_by_key(|at| operations[*at].begun);
    let mut ends: BinaryHeap<Reverse<(Moment, Revision)>> = BinaryHeap::new();
    let mut answered: BTreeMap<Revision, Moment> = BTreeMap::new();
    let mut end = |ends: &mut BinaryHeap<Reverse<(Moment, Revision)>>, moment: Moment, revision: Revision| {
        ends.push(Reverse((moment, revision)));
        answered.entry(revision).and_modify(|first| *first = moment.min(*first)).or_insert(moment);
    };
    // Who is told of a change knows that it took effect.
    for (moment, told) in history.watches.iter().flat_map(|log| &log.told) {
        end(&mut ends, *moment, told.revision());
    }
    let mut floor = 0;
    for at in begun {
        let operation = &operations[at];
        while let Some(Reverse((moment, revision))) = ends.peek().copied() {
            if moment >= operation.begun {
                break;
            }
            floor = floor.max(revision);
            ends.pop();
        }
        let point = match &operation.outcome {
            Outcome::Listed(revision, _) => {
                if *revision < floor {
                    let Operation { begun, ended, server, .. } = operation;
                    found.add(format!(
                        "a list by server {server}, from {begun} to {ended}, is of revision {revision}, when {floor} had \
                         been answered"
                    ));
                }
                Some(*revision)
            }
            Outcome::Wrote(_) | Outcome::Deleted(_) | Outcome::Unknown => {
                let point = writes.revisions.get(&at).copied();
                if let Some(point) = point.filter(|point| *point <= floor) {
                    found.add(format!("{operation:?} took effect at {point}, when {floor} had been answered before"));
                }
                point
            }
            Outcome::Got(_) | Outcome::NotFound | Outcome::AlreadyExists | Outcome::Conflict => {
                looked(versions, operation, floor..=ceilings.of(operation.ended), found)
            }
            Outcome::Odd(_) => {
                found.add(format!("{operation:?} was answered as no such request should be"));
                None
            }
        };
        if let Some(point) = point.filter(|_| operation.outcome != Outcome::Unknown) {
            end(&mut ends, operation.ended, point);
        }
    }
    let mut earliest = Moment::MAX;
    for first in answered.values_mut().rev() {
        earliest = earliest.min(*first);
        *first = earliest;
    }
    answered
}

/// The newest revision that could be seen at a moment: the one before the first of those whose writes began later.
struct Ceilings(Vec<(Moment, Revision)>);

impl Ceilings {
    fn of_writes(writes: &Writes, operations: &[Operation]) -> Ceilings {
        let mut all: Vec<_> =
            writes.revisions.iter().map(|(at, revision)| (operations[*at].begun, *revision)).collect();
        all.sort_unstable();
        let mut least = Revision::MAX;
        for (_, revision) in all.iter_mut().rev() {
            least = least.min(*revision);
            *revision = least;
        }
        Ceilings(all)
    }

    fn of(&self, moment: Moment) -> Revision {
        let later = self.0.partition_point(|(begun, _)| *begun <= moment);
        self.0.get(later).map_or(Revision::MAX, |(_, revision)| revision - 1)
    }
}

/// The earliest revision of a window at which an object was as this answer says.
fn looked(
    versions: &Versions,
    operation: &Operation,
    window: RangeInclusive<Revision>,
    found: &mut Found,
) -> Option<Revision> {
    let (floor, ceiling) = window.into_inner();
    let (name, at) = match operation.request {
        Request::Update { name, at, .. } | Request::Delete { name, at } => (name, at),
        Request::Create { name, .. } | Request::Patch { name, .. } | Request::Get { name } => (name, None),
        Request::List | Request::Pages => return None,
    };
    let point = match &operation.outcome {
        Outcome::Got(got) => versions.first(name, floor, |item| item == *got),
        Outcome::NotFound => versions.first(name, floor, |item| item.is_none()),
        Outcome::AlreadyExists => versions.first(name, floor, |item| item.is_some()),
        // Without a revision it only says that others were quicker.
        Outcome::Conflict if at.is_none() => return None,
        Outcome::Conflict => versions.first(name, floor, |item| item.map(|item| item.revision) != at),
        Outcome::Wrote(_) | Outcome::Deleted(_) | Outcome::Listed(..) | Outcome::Unknown | Outcome::Odd(_) => None,
    }
    .filter(|point| *point <= ceiling);
    if point.is_none() {
        let there = versions.before(name, floor + 1);
        found.add(format!(
            "{operation:?}: that was never so from revision {floor}, which had been answered when it began and left {there:?}, \
             to {}",
            if ceiling == Revision::MAX { "the last".to_owned() } else { ceiling.to_string() }
        ));
    }
    point
}

/// Each list is the state at its revision.
fn lists(order: &Order, operations: &[Operation], found: &mut Found) {
    let mut lists: Vec<(Revision, &Items, &Operation)> = Vec::new();
    for operation in operations {
        if let Outcome::Listed(revision, items) = &operation.outcome {
            lists.push((*revision, items, operation));
        }
    }
    lists.sort_by_key(|(revision, ..)| *revision);
    let (mut state, mut order) = (Items::new(), order.iter().peekable());
    for (revision, items, operation) in lists {
        while let Some((_, change)) = order.next_if(|(at, _)| **at <= revision) {
            match change.kind {
                Kind::Added | Kind::Modified => drop(state.insert(change.name, change.item)),
                Kind::Deleted => drop(state.remove(&change.name)),
            }
        }
        if *items != state {
            let wrong: Vec<String> = (items.keys().chain(state.keys()).collect::<BTreeSet<_>>().into_iter())
                .filter(|name| items.get(name) != state.get(name))
                .map(|name| format!("{name} as {:?} and not {:?}", items.get(name), state.get(name)))
                .collect();
            let Operation { begun, ended, server, .. } = operation;
            found.add(format!(
                "a list by server {server}, from {begun} to {ended}, at revision {revision} has {}",
                wrong.join(", ")
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(revision: Revision, value: Value) -> Item {
        Item { revision, uid: 7, value }
    }

    fn told(kind: Kind, name: Name, item: Item) -> (Moment, Told) {
        // Long after everything: what watchers know forbids nothing here.
        (1_000 + item.revision, Told::Change(Change { kind, name, item }))
    }

    fn operation(begun: Moment, ended: Moment, request: Request, outcome: Outcome) -> Operation {
        Operation { begun, ended, server: 0, request, outcome }
    }

    fn create(begun: Moment, ended: Moment, value: Value, revision: Revision) -> Operation {
        operation(begun, ended, Request::Create { name: 1, value }, Outcome::Wrote(item(revision, value)))
    }

    fn swap(begun: Moment, ended: Moment, value: Value, at: Revision, outcome: Outcome) -> Operation {
        operation(begun, ended, Request::Update { name: 1, value, at: Some(at) }, outcome)
    }

    fn put(begun: Moment, ended: Moment, value: Value, outcome: Outcome) -> Operation {
        operation(begun, ended, Request::Update { name: 1, value, at: None }, outcome)
    }

    fn delete(begun: Moment, ended: Moment, outcome: Outcome) -> Operation {
        operation(begun, ended, Request::Delete { name: 1, at: None }, outcome)
    }

    fn get(begun: Moment, ended: Moment, got: Option<Item>) -> Operation {
        operation(begun, ended, Request::Get { name: 1 }, Outcome::Got(got))
    }

    fn list(begun: Moment, ended: Moment, revision: Revision, items: &[Item]) -> Operation {
        let items = items.iter().map(|item| (1, *item)).collect();
        operation(begun, ended, Request::List, Outcome::Listed(revision, items))
    }

    fn log(told: Vec<(Moment, Told)>) -> WatchLog {
        WatchLog { server: "s".to_owned(), from: 1, told }
    }

    /// Created at 10 as value 1, swapped at 20 to value 2, deleted at 30.
    fn life() -> Vec<(Moment, Told)> {
        vec![
            told(Kind::Added, 1, item(10, 1)),
            told(Kind::Modified, 1, item(20, 2)),
            told(Kind::Deleted, 1, item(30, 2)),
        ]
    }

    fn done() -> Vec<Operation> {
        vec![
            create(10, 20, 1, 10),
            swap(30, 40, 2, 10, Outcome::Wrote(item(20, 2))),
            delete(50, 60, Outcome::Deleted(7)),
        ]
    }

    fn with(more: impl IntoIterator<Item = Operation>) -> Vec<Operation> {
        done().into_iter().chain(more).collect()
    }

    #[test]
    fn histories_that_are_good() {
        let aside = |at: usize, operation: Operation| {
            let mut all = done();
            all[at] = operation;
            all
        };
        let good: [(&str, Vec<Operation>); 14] = [
            ("one after the other", done()),
            ("reads of each state", with([get(0, 10, None), get(20, 30, Some(item(10, 1))), get(70, 80, None)])),
            (
                "a read beside a write may see either",
                with([get(30, 40, Some(item(10, 1))), get(30, 40, Some(item(20, 2)))]),
            ),
            ("lists", with([list(0, 10, 5, &[]), list(40, 50, 20, &[item(20, 2)]), list(60, 70, 40, &[])])),
            ("a list beside writes", with([list(10, 90, 15, &[item(10, 1)])])),
            ("an unknown write that was done", aside(1, swap(30, 40, 2, 10, Outcome::Unknown))),
            ("an unknown delete that was done", aside(2, delete(50, 60, Outcome::Unknown))),
            ("a delete without an answer, done long after", aside(2, delete(30, 30, Outcome::Unknown))),
            ("an unknown write that was not", with([put(30, 40, 9, Outcome::Unknown)])),
            (
                "refused while it was there",
                with([operation(30, 50, Request::Create { name: 1, value: 9 }, Outcome::AlreadyExists)]),
            ),
            ("refused when it was gone", with([put(60, 80, 9, Outcome::NotFound), delete(70, 80, Outcome::NotFound)])),
            ("a swap at what is old", with([swap(40, 50, 9, 10, Outcome::Conflict)])),
            ("a swap at what is getting old", with([swap(30, 40, 9, 10, Outcome::Conflict)])),
            ("others were quicker", with([put(20, 30, 9, Outcome::Conflict)])),
        ];
        for (what, operations) in good {
            let found = check(&History { operations, watches: vec![log(life()), log(life())] });
            assert_eq!(found, Vec::<String>::new(), "{what}");
        }
    }

    #[test]
    fn histories_that_are_bad() {
        let without = |at: usize| {
            let mut all = done();
            all.remove(at);
            all
        };
        let refused = Request::Create { name: 1, value: 9 };
        let bad: [(&str, Vec<Operation>, &str); 21] = [
            ("a stale read", with([get(45, 46, Some(item(10, 1)))]), "never so from revision 20"),
            ("a stale read of nothing", with([get(44, 46, None)]), "never so from revision 20"),
            ("a read of what never was", with([get(30, 40, Some(item(10, 3)))]), "never so"),
            ("a read from the future", with([get(10, 20, Some(item(20, 2)))]), "never so from revision 0,"),
            ("reads that go back", with([get(30, 40, Some(item(20, 2))), get(45, 46, Some(item(10, 1)))]), "never so"),
            (
                "of two reads beside one write the later sees less",
                [
                    create(10, 20, 1, 10),
                    swap(30, 90, 2, 10, Outcome::Wrote(item(20, 2))),
                    delete(90, 90, Outcome::Unknown),
                ]
                .into_iter()
                .chain([get(40, 50, Some(item(20, 2))), get(60, 70, Some(item(10, 1)))])
                .collect(),
                "never so from revision 20",
            ),
            ("a stale list", with([list(45, 46, 10, &[item(10, 1)])]), "when 20 had been answered"),
            ("a list of another time", with([list(40, 50, 20, &[item(10, 1)])]), "has 1 as"),
            ("a list with less", with([list(40, 50, 20, &[])]), "has 1 as None"),
            ("a lost write", with([put(70, 80, 9, Outcome::Wrote(item(40, 9)))]), "is not there"),
            ("a lost delete", with([delete(70, 80, Outcome::Deleted(8))]), "never deleted"),
            ("a create that nobody asked for", without(0), "nobody asked for"),
            ("a swap that nobody asked for", without(1), "nobody asked for"),
            ("a delete that nobody asked for", without(2), "nobody asked for"),
            (
                "a delete that began after its effect was seen",
                without(2).into_iter().chain([get(50, 60, None), delete(70, 80, Outcome::Unknown)]).collect(),
                "nobody asked for",
            ),
            ("one revision for two", with([delete(50, 60, Outcome::Deleted(7))]), "shares its revision 30"),
            (
                "turned around",
                vec![
                    create(10, 20, 1, 10),
                    delete(30, 40, Outcome::Deleted(7)),
                    swap(50, 60, 2, 10, Outcome::Wrote(item(20, 2))),
                ],
                "took effect at 20, when 30 had been answered",
            ),
            (
                "a swap of something else",
                vec![
                    create(10, 20, 1, 10),
                    swap(30, 40, 2, 9, Outcome::Wrote(item(20, 2))),
                    delete(50, 60, Outcome::Deleted(7)),
                ],
                "cannot have made",
            ),
            ("refused while it was gone", with([operation(70, 80, refused, Outcome::AlreadyExists)]), "never so"),
            ("not found while it was there", with([put(22, 24, 9, Outcome::NotFound)]), "never so from revision 10"),
            (
                "a swap refused at what it named",
                with([swap(22, 24, 9, 10, Outcome::Conflict)]),
                "never so from revision 10",
            ),
        ];
        for (what, operations, why) in bad {
            let found = check(&History { operations, watches: vec![log(life())] });
            assert!(found.iter().any(|found| found.contains(why)), "{what}: {found:?}");
        }
        let odd = with([put(70, 80, 9, Outcome::Odd("418".to_owned()))]);
        assert_eq!(check(&History { operations: odd, watches: vec![log(life())] }).len(), 1);
    }

    #[test]
    fn what_watchers_are_told() {
        let [added, modified, deleted] = <[_; 3]>::try_from(life()).expect("three changes");
        let progress = |revision| (2_000, Told::Progress(revision));
        let good = vec![
            added.clone(),
            progress(10),
            modified.clone(),
            progress(25),
            progress(25),
            deleted.clone(),
            progress(40),
        ];
        let all = |told| check(&History { operations: done(), watches: vec![log(life()), log(told)] });
        assert_eq!(all(good), Vec::<String>::new());
        let late = WatchLog { from: 20, ..log(vec![deleted.clone()]) };
        assert_eq!(check(&History { operations: done(), watches: vec![log(life()), late] }), Vec::<String>::new());
        let other = told(Kind::Modified, 1, item(20, 3));
        for (what, told, why) in [
            ("a gap", vec![added.clone(), deleted.clone()], "was not told"),
            ("again", vec![added.clone(), added.clone(), modified.clone(), deleted.clone()], "had all up to 10"),
            ("backwards", vec![modified.clone(), added.clone(), deleted.clone()], "had all up to 20"),
            ("progress ahead of events", vec![added.clone(), progress(20), modified.clone()], "had all up to 20"),
            ("progress that hides the last one", vec![added.clone(), modified.clone(), progress(40)], "was not told"),
            ("something else", vec![added.clone(), other, deleted.clone()], "another one"),
        ] {
            let found = all(told);
            assert!(found.iter().any(|found| found.contains(why)), "{what}: {found:?}");
        }
        // Whoever asks after a watcher was told must see what it was told.
        let told = life().into_iter().map(|(moment, told)| ((moment - 1_000) * 2, told)).collect();
        let operations: Vec<Operation> = done().into_iter().map(|done| Operation { ended: 900, ..done }).collect();
        let history =
            |more| History { operations: operations.iter().cloned().chain(more).collect(), watches: vec![log(told)] };
        let found = check(&history([get(45, 46, Some(item(10, 1)))]));
        assert!(found.iter().any(|found| found.contains("never so from revision 20")), "{found:?}");
    }

    #[test]
    fn changes_that_make_no_sense() {
        for (what, told) in [
            ("created twice", vec![told(Kind::Added, 1, item(10, 1)), told(Kind::Added, 1, item(20, 2))]),
            ("changed before it was there", vec![told(Kind::Modified, 1, item(10, 1))]),
            ("deleted as it never was", vec![told(Kind::Added, 1, item(10, 1)), told(Kind::Deleted, 1, item(20, 2))]),
        ] {
            let found = check(&History { operations: Vec::new(), watches: vec![log(told)] });
            assert!(found.iter().any(|found| found.contains("came when the object was")), "{what}: {found:?}");
        }
        let twice = vec![
            told(Kind::Added, 1, item(10, 1)),
            told(Kind::Modified, 1, item(20, 2)),
            told(Kind::Modified, 1, item(30, 1)),
        ];
        let operations = vec![create(10, 90, 1, 10), put(10, 90, 2, Outcome::Unknown)];
        let found = check(&History { operations, watches: vec![log(twice)] });
        assert!(found.iter().any(|found| found.contains("written at revision 10 already")), "{found:?}");
    }

    /// The delete of any version would do for both deletions, the one of a named version only for the first.
    #[test]
    fn of_two_unknown_deletes_each_explains_one() {
        let again = Item { revision: 20, uid: 8, value: 2 };
        let log = log(vec![
            told(Kind::Added, 1, item(10, 1)),
            told(Kind::Deleted, 1, item(11, 1)),
            told(Kind::Added, 1, again),
            told(Kind::Deleted, 1, Item { revision: 21, ..again }),
        ]);
        let mut operations = vec![
            create(10, 20, 1, 10),
            operation(30, 30, Request::Delete { name: 1, at: None }, Outcome::Unknown),
            operation(30, 30, Request::Delete { name: 1, at: Some(10) }, Outcome::Unknown),
            operation(40, 50, Request::Create { name: 1, value: 2 }, Outcome::Wrote(again)),
        ];
        let history =
            |operations: &[Operation]| History { operations: operations.to_vec(), watches: vec![log.clone()] };
        assert_eq!(check(&history(&operations)), Vec::<String>::new());
        operations.remove(2);
        assert!(check(&history(&operations))[0].contains("nobody asked for"));
    }
}
