//! Lease: who holds something, and until when.

use serde_json::Value;

use super::{BASE, object_meta, print};
use crate::{
    field::{Errors, Path, int, text},
    registry::{Kind, Part, Strategy},
    status::Cause,
    table::Column,
};

pub static LEASE: Kind = Kind {
    group: "coordination.k8s.io",
    kind: "Lease",
    plural: "leases",
    singular: "lease",
    schema: "io.k8s.api.coordination.v1.Lease",
    columns: &[Column::NAME, Column::text("Holder", "Who holds the lease."), Column::AGE],
    strategy: &Leases,
    ..BASE
};

struct Leases;

impl Strategy for Leases {
    fn validate(&self, object: &Value) -> Vec<Cause> {
        let mut errors = Errors::new();
        object_meta::validate(&mut errors, object, &object_meta::SUBDOMAIN);
        spec(&mut errors, object.get("spec").unwrap_or(&Value::Null));
        errors.0
    }

    fn validate_update(&self, new: &Value, old: &Value, _part: Part) -> Vec<Cause> {
        let mut errors = Errors::new();
        object_meta::validate_update(&mut errors, new, old);
        errors.0
    }

    fn row(&self, object: &Value, now: i64) -> Vec<Value> {
        let holder = object.get("spec").map(|spec| text(spec, "holderIdentity")).unwrap_or_default();
        vec![print::name(object), holder.into(), print::age(object, now)]
    }
}

fn spec(errors: &mut Errors, spec: &Value) {
    let path = Path::root("spec");
    if let Some(seconds) = int(spec, "leaseDurationSeconds")
        && seconds <= 0
    {
        errors.invalid(&path.child("leaseDurationSeconds"), &seconds.into(), "must be greater than 0");
    }
    errors.not_negative(&path.child("leaseTransitions"), int(spec, "leaseTransitions"));
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn durations_are_positive() {
        let table = [
            (json!({"leaseDurationSeconds": 40, "holderIdentity": "n"}), ""),
            (json!({"leaseDurationSeconds": 0}), "spec.leaseDurationSeconds"),
            (json!({"leaseTransitions": -1}), "spec.leaseTransitions"),
        ];
        for (spec, expected) in table {
            let object = json!({"metadata": {"name": "a", "namespace": "n"}, "spec": spec});
            let fields: Vec<String> = Leases.validate(&object).into_iter().map(|cause| cause.field).collect();
            assert_eq!(fields.join(" "), expected);
        }
        let object = json!({"metadata": {"name": "a"}, "spec": {"holderIdentity": "n"}});
        assert_eq!(json!(Leases.row(&object, 0)), json!(["a", "n", "<unknown>"]));
    }
}
