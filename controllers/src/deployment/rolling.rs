//! How many replicas each set may have now.

use k8s_openapi::{
    api::apps::v1::{Deployment, ReplicaSet},
    apimachinery::pkg::util::intstr::IntOrString,
};

use super::{Input, Member, Work, is_recreate, replicas, revision};

/// The bounds of a rollout, in pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    pub desired: i32,
    pub surge: i32,
    pub unavailable: i32,
}

impl Limits {
    pub fn of(deployment: &Deployment) -> Limits {
        let spec = deployment.spec.as_ref();
        let desired = spec.and_then(|s| s.replicas).unwrap_or(1).max(0);
        if is_recreate(deployment) {
            return Limits { desired, surge: 0, unavailable: desired };
        }
        let rolling = spec.and_then(|s| s.strategy.as_ref()?.rolling_update.as_ref());
        let quarter = IntOrString::String("25%".to_owned());
        let surge = rolling.and_then(|r| r.max_surge.as_ref()).unwrap_or(&quarter);
        let unavailable = rolling.and_then(|r| r.max_unavailable.as_ref()).unwrap_or(&quarter);
        let surge = part_of(surge, desired, Round::Up);
        let unavailable = part_of(unavailable, desired, Round::Down).min(desired);
        // With both at zero nothing could ever move. Rounding can bring that about, validation lets through no such pair.
        let unavailable = if surge == 0 && unavailable == 0 { 1 } else { unavailable };
        Limits { desired, surge, unavailable }
    }

    /// The most pods that may be asked for.
    pub fn most(&self) -> i32 {
        self.desired.saturating_add(self.surge)
    }

    /// The fewest pods that must stay available.
    pub fn least_available(&self) -> i32 {
        (self.desired - self.unavailable).max(0)
    }
}

#[derive(Clone, Copy)]
enum Round {
    Up,
    Down,
}

/// An absolute number, or a percentage of the whole.
fn part_of(part: &IntOrString, whole: i32, round: Round) -> i32 {
    match part {
        IntOrString::Int(n) => (*n).max(0),
        IntOrString::String(text) => {
            let percent: i64 = text.trim_end_matches('%').parse().unwrap_or(0);
            let hundredths = percent.max(0) * i64::from(whole);
            let rounded = match round {
                Round::Up => (hundredths + 99) / 100,
                Round::Down => hundredths / 100,
            };
            i32::try_from(rounded).unwrap_or(i32::MAX)
        }
    }
}

impl Work<'_> {
    /// One step of a rolling update: up with the new set as far as the surge allows, down with the old ones as far as
    /// availability allows. Both may happen in one plan, as what the one adds is not yet available to the other.
    pub(super) fn roll(&mut self, input: &Input<'_>) {
        match self.new {
            None => self.create_new(input, self.new_size(0)),
            Some(index) => {
                let size = self.new_size(self.sets[index].wanted());
                if size != self.sets[index].wanted() {
                    self.resize(index, size);
                }
            }
        }
        self.shrink_old();
    }

    fn new_size(&self, now: i32) -> i32 {
        if now > self.desired() {
            return self.desired();
        }
        let room = (self.limits.most() - self.total()).max(0);
        now + room.min(self.desired() - now)
    }

    /// Takes from the old sets, unavailable pods first, then available ones that the new set has made up for.
    fn shrink_old(&mut self) {
        // A set that this plan only creates has everything still to come.
        let new_wanted = self.new_member().map_or(0, Member::wanted) + self.created.as_ref().map_or(0, replicas);
        let new_missing = new_wanted - self.new_member().map_or(0, Member::available);
        // Every pod that is asked for and may go: the worst case counts all of the new set's missing pods as lost.
        let mut spare = self.total() - self.limits.least_available() - new_missing;
        let old: Vec<usize> = self.old().map(|(i, _)| i).collect();
        for &index in &old {
            let member = &self.sets[index];
            let idle = member.idle().min(spare);
            if idle > 0 {
                let size = member.wanted() - idle;
                self.resize(index, size);
                spare -= idle;
            }
        }
        let available: i32 = self.sets.iter().map(Member::available).sum();
        let mut spare = spare.min(available - self.limits.least_available());
        for &index in &old {
            let wanted = self.sets[index].wanted();
            let goes = wanted.min(spare);
            if goes > 0 {
                self.resize(index, wanted - goes);
                spare -= goes;
            }
        }
    }

    /// Whether the deployment was scaled since the sets got their sizes.
    pub(super) fn is_scaling(&self) -> bool {
        let active = self.sets.iter().filter(|m| m.wanted() > 0);
        active.filter_map(|m| revision::noted_desired(&m.set)).any(|noted| noted != self.desired())
    }

    /// Follows a change of the deployment's own size without moving the rollout on.
    pub(super) fn scale(&mut self) {
        let active: Vec<usize> = (0..self.sets.len()).filter(|i| self.sets[*i].wanted() > 0).collect();
        // The newest old set stands in where nothing is active and the new set does not exist yet.
        let newest = self.new.or_else(|| self.old().map(|(i, _)| i).last());
        match active.as_slice() {
            [] => {
                if let Some(index) = newest {
                    self.resize_noting(index, self.desired());
                }
            }
            [only] => self.resize_noting(*only, self.desired()),
            many if self.is_saturated() => {
                let new = self.new;
                for &index in many.iter().filter(|i| Some(**i) != new) {
                    self.resize(index, 0);
                }
            }
            many if !is_recreate(self.deployment) => self.scale_in_proportion(many),
            _ => {}
        }
    }

    fn resize_noting(&mut self, index: usize, size: i32) {
        let set = &self.sets[index].set;
        let noted = (revision::noted_desired(set), revision::noted_most(set));
        if replicas(set) != size || noted != (Some(self.limits.desired), Some(self.limits.most())) {
            self.resize(index, size);
        }
    }

    /// The new set alone is all that is asked for.
    fn is_saturated(&self) -> bool {
        self.new_member().is_some_and(|m| {
            m.wanted() == self.desired()
                && revision::noted_desired(&m.set) == Some(self.desired())
                && m.available() == self.desired()
        })
    }

    /// Spreads growth or shrinkage over the active sets, each by its share, what rounding leaves over to the largest.
    fn scale_in_proportion(&mut self, active: &[usize]) {
        let total: i32 = active.iter().map(|i| self.sets[*i].wanted()).sum();
        let allowed = if self.desired() > 0 { self.limits.most() } else { 0 };
        let change = allowed - total;
        let mut order = active.to_vec();
        // The largest first; among equals the newer grows first, and the older shrinks first.
        order.sort_by_key(|i| {
            let by_age = i64::try_from(*i).unwrap_or(i64::MAX);
            (-i64::from(self.sets[*i].wanted()), if change > 0 { -by_age } else { by_age })
        });
        let mut changed = 0;
        let mut sizes = Vec::with_capacity(order.len());
        for &index in &order {
            let share = self.share(&self.sets[index].set, change, change - changed);
            changed += share;
            sizes.push(self.sets[index].wanted() + share);
        }
        if let Some(largest) = sizes.first_mut() {
            *largest = (*largest + change - changed).max(0);
        }
        for (index, size) in order.into_iter().zip(sizes) {
            self.resize_noting(index, size);
        }
    }

    fn share(&self, set: &ReplicaSet, change: i32, left: i32) -> i32 {
        let had = replicas(set);
        if change == 0 || left == 0 || had == 0 {
            return 0;
        }
        let share = if self.desired() == 0 {
            -had
        } else {
            let status = self.deployment.status.as_ref().and_then(|s| s.replicas).unwrap_or(0);
            let before = revision::noted_most(set).filter(|n| *n > 0).unwrap_or(status);
            if before == 0 {
                return 0;
            }
            let (had, most, before) = (i64::from(had), i64::from(self.limits.most()), i64::from(before));
            // Rounds half up; all three are positive.
            i32::try_from((2 * had * most + before) / (2 * before) - had).unwrap_or(i32::MAX)
        };
        if change > 0 { share.clamp(0, left) } else { share.clamp(left, 0) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentages_round_for_safety() {
        let text = |t: &str| IntOrString::String(t.to_owned());
        let cases = [
            (text("25%"), 10, 3, 2),
            (text("25%"), 1, 1, 0),
            (text("0%"), 10, 0, 0),
            (text("100%"), 7, 7, 7),
            (IntOrString::Int(3), 10, 3, 3),
        ];
        for (part, whole, up, down) in cases {
            assert_eq!(part_of(&part, whole, Round::Up), up, "{part:?} of {whole}, up");
            assert_eq!(part_of(&part, whole, Round::Down), down, "{part:?} of {whole}, down");
        }
    }
}
