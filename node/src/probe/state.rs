//! From single results to a verdict, by the thresholds of the probe. Pure.

use k8s_openapi::api::core::v1::Probe;

use super::ProbeKind;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Passing,
    Failing,
}

/// Results of one probe of one running container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tally {
    successes: i32,
    failures: i32,
    success_threshold: i32,
    failure_threshold: i32,
    /// None: nothing has been decided yet.
    verdict: Option<Verdict>,
}

impl Tally {
    pub fn new(kind: ProbeKind, probe: &Probe) -> Tally {
        Tally {
            successes: 0,
            failures: 0,
            success_threshold: probe.success_threshold.unwrap_or(1).max(1),
            failure_threshold: probe.failure_threshold.unwrap_or(3).max(1),
            // A container counts as live until shown otherwise.
            verdict: (kind == ProbeKind::Liveness).then_some(Verdict::Passing),
        }
    }

    /// Takes one result; gives the verdict if it changed.
    pub fn count(&mut self, success: bool) -> Option<Verdict> {
        let (reached, verdict) = if success {
            self.successes = self.successes.saturating_add(1);
            self.failures = 0;
            (self.successes >= self.success_threshold, Verdict::Passing)
        } else {
            self.failures = self.failures.saturating_add(1);
            self.successes = 0;
            (self.failures >= self.failure_threshold, Verdict::Failing)
        };
        if !reached || self.verdict == Some(verdict) {
            return None;
        }
        self.verdict = Some(verdict);
        Some(verdict)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thresholds_decide() {
        use ProbeKind::{Liveness, Readiness, Startup};
        // (kind, success threshold, failure threshold, results, what each result changed)
        let table = [
            (Readiness, 1, 3, "+--+---+", "P.....FP"),
            (Readiness, 2, 1, "++-++", ".PF.P"),
            (Liveness, 1, 3, "+--+---", "......F"),
            (Startup, 1, 2, "-+", ".P"),
            (Startup, 1, 2, "--", ".F"),
        ];
        for (kind, success, failure, results, expected) in table {
            let probe =
                Probe { success_threshold: Some(success), failure_threshold: Some(failure), ..Probe::default() };
            let mut tally = Tally::new(kind, &probe);
            let shown: String = results
                .chars()
                .map(|c| match tally.count(c == '+') {
                    None => '.',
                    Some(Verdict::Passing) => 'P',
                    Some(Verdict::Failing) => 'F',
                })
                .collect();
            assert_eq!(shown, expected, "{kind:?} {results}");
        }
    }
}
