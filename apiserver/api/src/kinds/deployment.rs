//! Deployment: replica sets that follow each other as the template changes.

use serde_json::Value;

use super::{BASE, CATEGORY_ALL, object_meta, print, replica_set, workload};
use crate::{
    field::{Errors, Path, int, object_mut, set_default, set_default_text, some_text, text},
    registry::{Kind, Part, Strategy},
    status::Cause,
    table::Column,
};

pub static DEPLOYMENT: Kind = Kind {
    group: "apps",
    kind: "Deployment",
    plural: "deployments",
    singular: "deployment",
    short_names: &["deploy"],
    categories: CATEGORY_ALL,
    has_status: true,
    scale: Some(&replica_set::SCALE),
    schema: "io.k8s.api.apps.v1.Deployment",
    columns: &[
        Column::NAME,
        Column::text("Ready", "Pods that are ready, of those asked for."),
        Column::text("Up-to-date", "Pods of the current template."),
        Column::text("Available", "Pods that have been ready for long enough."),
        Column::AGE,
        Column::text("Containers", "Names of the containers.").wide(),
        Column::text("Images", "Images of the containers.").wide(),
        Column::text("Selector", "The labels of its pods.").wide(),
    ],
    strategy: &Deployments,
    ..BASE
};

struct Deployments;

/// What a status counts, of its `replicas`.
const COUNTS: &[&str] = &["updatedReplicas", "readyReplicas", "availableReplicas"];

impl Strategy for Deployments {
    fn default(&self, object: &mut Value) {
        workload::default(object);
        let spec = object_mut(object, "spec");
        set_default(spec, "revisionHistoryLimit", 10);
        set_default(spec, "progressDeadlineSeconds", 600);
        let strategy = object_mut(spec, "strategy");
        set_default_text(strategy, "type", "RollingUpdate");
        if text(strategy, "type") == "RollingUpdate" {
            let rolling = object_mut(strategy, "rollingUpdate");
            set_default(rolling, "maxUnavailable", "25%");
            set_default(rolling, "maxSurge", "25%");
        }
    }

    fn validate(&self, object: &Value) -> Vec<Cause> {
        let mut errors = Errors::new();
        object_meta::validate(&mut errors, object, &object_meta::SUBDOMAIN);
        let selector = workload::selector(&mut errors, object);
        workload::validate(&mut errors, object, selector);
        progress(&mut errors, object.get("spec").unwrap_or(&Value::Null));
        errors.0
    }

    fn validate_update(&self, new: &Value, old: &Value, part: Part) -> Vec<Cause> {
        let mut errors = Errors::new();
        object_meta::validate_update(&mut errors, new, old);
        workload::selector_immutable(&mut errors, new, old);
        if part == Part::Status {
            workload::validate_status(&mut errors, new, COUNTS);
        }
        errors.0
    }

    fn row(&self, object: &Value, now: i64) -> Vec<Value> {
        let (containers, images) = print::containers_and_images(object);
        let desired = print::number(object, "/spec/replicas");
        let selector = object.pointer("/spec/selector").map_or_else(|| print::NONE.to_owned(), print::selector);
        vec![
            print::name(object),
            format!("{}/{desired}", print::number(object, "/status/readyReplicas")).into(),
            print::number(object, "/status/updatedReplicas").into(),
            print::number(object, "/status/availableReplicas").into(),
            print::age(object, now),
            containers.into(),
            images.into(),
            selector.into(),
        ]
    }
}

/// Checks how a deployment goes from one template to the next.
fn progress(errors: &mut Errors, spec: &Value) {
    let path = Path::root("spec");
    errors.not_negative(&path.child("revisionHistoryLimit"), int(spec, "revisionHistoryLimit"));
    if let Some(deadline) = int(spec, "progressDeadlineSeconds") {
        let at = path.child("progressDeadlineSeconds");
        errors.not_negative(&at, Some(deadline));
        if deadline <= int(spec, "minReadySeconds").unwrap_or_default() {
            errors.invalid(&at, &deadline.into(), "must exceed minReadySeconds");
        }
    }
    let strategy = spec.get("strategy").unwrap_or(&Value::Null);
    let path = path.child("strategy");
    let rolling = path.child("rollingUpdate");
    match (some_text(strategy, "type"), strategy.get("rollingUpdate")) {
        (Some("Recreate"), Some(_)) => {
            errors.forbidden(&rolling, "Recreate does not roll");
        }
        (Some("RollingUpdate"), None) => errors.required(&rolling, ""),
        (Some("RollingUpdate"), Some(update)) => rolling_update(errors, &rolling, update),
        (kind, _) => errors.one_of(&path.child("type"), kind, &["Recreate", "RollingUpdate"]),
    }
}

fn rolling_update(errors: &mut Errors, path: &Path<'_>, update: &Value) {
    let unavailable = int_or_percent(errors, &path.child("maxUnavailable"), update.get("maxUnavailable"));
    let surge = int_or_percent(errors, &path.child("maxSurge"), update.get("maxSurge"));
    if unavailable == Some(0) && surge == Some(0) {
        errors.invalid(&path.child("maxUnavailable"), &0.into(), "may not be 0 when `maxSurge` is 0");
    }
    let percent = update.get("maxUnavailable").is_some_and(Value::is_string);
    if percent && unavailable.is_some_and(|number| number > 100) {
        let value = &update["maxUnavailable"];
        errors.invalid(&path.child("maxUnavailable"), value, "must not be greater than 100%");
    }
}

/// The number, of pods or of percent.
fn int_or_percent(errors: &mut Errors, at: &Path<'_>, value: Option<&Value>) -> Option<i64> {
    match value? {
        Value::String(text) => {
            let number = text.strip_suffix('%').filter(|digits| digits.bytes().all(|b| b.is_ascii_digit()));
            let number = number.and_then(|digits| digits.parse().ok());
            if number.is_none() {
                errors.invalid_str(at, text, "must be a number of pods or a percentage (such as '25%')");
            }
            number
        }
        number => {
            errors.not_negative(at, number.as_i64());
            number.as_i64()
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn small(strategy: Value) -> Value {
        json!({"metadata": {"name": "a", "namespace": "n"}, "spec": {"selector": {"matchLabels": {"a": "b"}},
            "strategy": strategy,
            "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}})
    }

    #[test]
    fn defaults_roll() {
        let mut object = small(json!({}));
        Deployments.default(&mut object);
        let spec = &object["spec"];
        assert_eq!(
            spec["strategy"],
            json!({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "25%", "maxSurge": "25%"}})
        );
        assert_eq!(
            (&spec["replicas"], &spec["revisionHistoryLimit"], &spec["progressDeadlineSeconds"]),
            (&json!(1), &json!(10), &json!(600))
        );
        assert_eq!(spec["template"]["spec"]["dnsPolicy"], "ClusterFirst");
        assert_eq!(Deployments.validate(&object), []);
    }

    #[test]
    fn strategies_are_checked() {
        let rolling = |unavailable: Value, surge: Value| json!({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": unavailable, "maxSurge": surge}});
        let table = [
            (rolling(json!(1), json!("0%")), ""),
            (json!({"type": "Recreate"}), ""),
            (rolling(json!(0), json!("0%")), "spec.strategy.rollingUpdate.maxUnavailable"),
            (rolling(json!("101%"), json!(0)), "spec.strategy.rollingUpdate.maxUnavailable"),
            (rolling(json!("half"), json!(1)), "spec.strategy.rollingUpdate.maxUnavailable"),
            (rolling(json!(1), json!(-1)), "spec.strategy.rollingUpdate.maxSurge"),
            (json!({"type": "Recreate", "rollingUpdate": {}}), "spec.strategy.rollingUpdate"),
            (json!({"type": "Slow"}), "spec.strategy.type"),
        ];
        for (strategy, field) in table {
            let mut object = small(strategy.clone());
            Deployments.default(&mut object);
            let fields: Vec<String> = Deployments.validate(&object).into_iter().map(|c| c.field).collect();
            assert_eq!(fields.join(" "), field, "{strategy}");
        }
    }

    #[test]
    fn rows_show_progress() {
        let object = json!({"metadata": {"name": "a"},
            "status": {"replicas": 4, "readyReplicas": 2, "updatedReplicas": 1, "availableReplicas": 2},
            "spec": {"replicas": 3, "selector": {"matchLabels": {"a": "b"}}, "template": {"spec": {"containers": [
                {"name": "c", "image": "i"}]}}}});
        assert_eq!(json!(Deployments.row(&object, 0)), json!(["a", "2/3", 1, 2, "<unknown>", "c", "i", "a=b"]));
    }
}
