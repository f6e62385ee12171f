//! The Kubernetes examples are configurations that load: what their ConfigMaps and Secrets mount is given to
//! `wsbouncer check`, in the places where their volumes put it. `tests/deploy/run` asks the programs that read manifests.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::Duration;
use std::{fs, str};

use serde::Deserialize as _;
use serde_yaml::Value;

const SIDECAR: &str = "sidecar.yaml";
const GATEWAY: &str = "gateway.yaml";

/// The documents of an example by kind; of those that this looks at it has one each.
fn documents(example: &str) -> BTreeMap<String, Value> {
    let text =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("config/kubernetes").join(example)).unwrap();
    let documents = serde_yaml::Deserializer::from_str(&text).map(|document| Value::deserialize(document).unwrap());
    let documents = documents.filter(|document| !document.is_null());
    let by_kind: BTreeMap<_, _> = documents.map(|it| (it["kind"].as_str().unwrap().to_owned(), it)).collect();
    for kind in ["ConfigMap", "Deployment", "Secret", "Service"] {
        assert!(by_kind.contains_key(kind), "{example} has no {kind}");
    }
    by_kind
}

fn container<'d>(deployment: &'d Value, name: &str) -> &'d Value {
    let containers = deployment["spec"]["template"]["spec"]["containers"].as_sequence().unwrap();
    containers.iter().find(|container| container["name"] == name).unwrap()
}

/// Writes the files of a volume where a container of the example mounts it, below `root`.
fn mount(root: &Path, deployment: &Value, volume: &str, files: &Value) -> usize {
    let mounts = container(deployment, "wsbouncer")["volumeMounts"].as_sequence().unwrap();
    let mount = mounts.iter().find(|mount| mount["name"] == volume).unwrap();
    assert!(mount["subPath"].is_null(), "a subPath mount never shows a later change");
    let directory = root.join(mount["mountPath"].as_str().unwrap().trim_start_matches('/'));
    fs::create_dir_all(&directory).unwrap();
    let files = files.as_mapping().unwrap();
    for (name, text) in files {
        fs::write(directory.join(name.as_str().unwrap()), text.as_str().unwrap()).unwrap();
    }
    files.len()
}

#[test]
fn what_an_example_mounts_is_a_good_configuration() {
    [SIDECAR, GATEWAY].into_iter().for_each(mounts_a_good_configuration);
}

#[track_caller]
fn mounts_a_good_configuration(example: &str) {
    let documents = documents(example);
    let deployment = &documents["Deployment"];
    let root = tempfile::tempdir().unwrap();
    assert_eq!(mount(root.path(), deployment, "rules", &documents["ConfigMap"]["data"]), 1);
    assert_eq!(mount(root.path(), deployment, "keys", &documents["Secret"]["stringData"]), 1);

    let args = container(deployment, "wsbouncer")["args"].as_sequence().unwrap();
    let file = args.last().unwrap().as_str().unwrap().trim_start_matches('/');
    let output =
        Command::new(env!("CARGO_BIN_EXE_wsbouncer")).arg("check").arg(root.path().join(file)).output().unwrap();
    let errors = str::from_utf8(&output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(0), "{errors}");
    assert_eq!(errors, "", "an example has no warnings");
}

/// Less time than the drain needs, and the kubelet kills what was about to be closed properly.
#[test]
fn a_pod_is_given_the_time_that_the_drain_takes() {
    for example in [SIDECAR, GATEWAY] {
        outlives_its_drain(&documents(example), (example == SIDECAR).then_some("chat"));
    }
}

#[track_caller]
fn outlives_its_drain(documents: &BTreeMap<String, Value>, service: Option<&str>) {
    let pod = &documents["Deployment"]["spec"]["template"]["spec"];
    let rules: Value =
        serde_yaml::from_str(documents["ConfigMap"]["data"]["wsbouncer.yaml"].as_str().unwrap()).unwrap();
    let seconds = |value: &Value| Duration::from_secs(value.as_u64().unwrap());
    let drain = rules["drain"]["timeout"]
        .as_str()
        .unwrap()
        .strip_suffix('s')
        .unwrap()
        .parse()
        .map(Duration::from_secs)
        .unwrap();
    let pre_stop =
        |name| seconds(&container(&documents["Deployment"], name)["lifecycle"]["preStop"]["sleep"]["seconds"]);
    assert!(seconds(&pod["terminationGracePeriodSeconds"]) >= pre_stop("wsbouncer") + drain + Duration::from_secs(5));
    if let Some(service) = service {
        assert!(pre_stop(service) > pre_stop("wsbouncer") + drain, "the service must outlive the drain");
    }
}

/// The one way in leads through the proxy.
#[test]
fn only_the_proxys_port_is_reachable() {
    let documents = documents(SIDECAR);
    let ports = documents["Service"]["spec"]["ports"].as_sequence().unwrap();
    assert_eq!(ports.len(), 1);
    assert_eq!(ports[0]["targetPort"], "ws");
    let deployment = &documents["Deployment"];
    assert_eq!(container(deployment, "wsbouncer")["ports"][0]["name"], "ws");
    assert!(container(deployment, "chat")["ports"].is_null());
    let rules = documents["ConfigMap"]["data"]["wsbouncer.yaml"].as_str().unwrap();
    assert!(rules.contains("listen: 0.0.0.0:8080") && rules.contains("ws://127.0.0.1:9000"));
    assert!(!rules.contains("allow_remote"));
}
