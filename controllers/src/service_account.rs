//! What every namespace has: the service account `default`, and the cluster's root certificate to verify the API by.

use client::object;
use k8s_openapi::{
    api::core::v1::{ConfigMap, Namespace, ServiceAccount},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};

use crate::{
    plan::{Plan, Step, Write},
    selector::Labels,
};

pub const ACCOUNT: &str = "default";
pub const ROOT_CA: &str = "kube-root-ca.crt";
const FILE: &str = "ca.crt";
const DESCRIPTION: (&str, &str) = (
    "kubernetes.io/description",
    "The certificate authority that vouches for the API server at its addresses inside the cluster.",
);

pub struct Input<'a> {
    pub namespace: &'a Namespace,
    pub account: Option<&'a ServiceAccount>,
    pub root_ca: Option<&'a ConfigMap>,
    pub root_ca_pem: &'a str,
}

pub fn plan(input: &Input<'_>) -> Plan {
    let terminating = input.namespace.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Terminating");
    if terminating || object::is_deleting(input.namespace) {
        return Plan::nothing();
    }
    let namespace = object::name(input.namespace);
    let mut writes = Vec::new();
    if input.account.is_none() {
        let metadata = meta(namespace, ACCOUNT);
        writes.push(Write::create(&ServiceAccount { metadata, ..ServiceAccount::default() }));
    }
    let data: Labels = [(FILE.to_owned(), input.root_ca_pem.to_owned())].into();
    match input.root_ca {
        None => {
            let mut metadata = meta(namespace, ROOT_CA);
            metadata.annotations = Some([(DESCRIPTION.0.to_owned(), DESCRIPTION.1.to_owned())].into());
            writes.push(Write::create(&ConfigMap { metadata, data: Some(data), ..ConfigMap::default() }));
        }
        Some(had) if had.data.as_ref() != Some(&data) => {
            writes.push(Write::replace(&ConfigMap { data: Some(data), ..had.clone() }));
        }
        Some(_) => {}
    }
    Plan::nothing().then(Step::together(writes))
}

fn meta(namespace: &str, name: &str) -> ObjectMeta {
    ObjectMeta { namespace: Some(namespace.to_owned()), name: Some(name.to_owned()), ..ObjectMeta::default() }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::NamespaceStatus;

    use super::*;
    use crate::{plan::Action, testing};

    #[test]
    fn a_namespace_gets_both_and_keeps_them() {
        let mut namespace = Namespace { metadata: testing::meta("x"), ..Namespace::default() };
        let run = |namespace: &Namespace, account: Option<&ServiceAccount>, root_ca: Option<&ConfigMap>| {
            plan(&Input { namespace, account, root_ca, root_ca_pem: "PEM" })
        };
        let new = run(&namespace, None, None);
        assert_eq!(new.steps[0].writes.len(), 2);
        let Action::Create { object, .. } = &new.steps[0].writes[1].action else { panic!("a create: {new:?}") };
        let made: ConfigMap = serde_json::from_value(object.clone()).expect("a config map");
        assert_eq!(made.data.as_ref().and_then(|d| d.get(FILE)).map(String::as_str), Some("PEM"));
        let account = ServiceAccount::default();
        assert_eq!(run(&namespace, Some(&account), Some(&made)), Plan::nothing());
        let tampered = ConfigMap { data: None, ..made };
        let mended = run(&namespace, Some(&account), Some(&tampered));
        assert!(matches!(mended.steps[0].writes[0].action, Action::Replace { .. }));
        namespace.status = Some(NamespaceStatus { phase: Some("Terminating".into()), conditions: None });
        assert_eq!(run(&namespace, None, None), Plan::nothing());
    }
}
