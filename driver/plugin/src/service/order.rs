//! What does Nomad's configuration of a task say, in our words?

use nomad_proto::drivers::TaskConfig;
use steppe_vm::spec::{Allocated, AllocatedPort, Whose};

use crate::task::Order;

/// The parts of a task's configuration that a start needs.
pub(super) fn order(config: &TaskConfig) -> Order {
    let linux = config
        .resources
        .as_ref()
        .and_then(|resources| resources.linux_resources.as_ref());
    Order {
        task_id: config.id.clone(),
        task_name: config.name.clone(),
        alloc_id: config.alloc_id.clone(),
        job_id: config.job_id.clone(),
        namespace: config.namespace.clone(),
        alloc_dir: config.alloc_dir.clone().into(),
        stdout: config.stdout_path.clone(),
        stderr: config.stderr_path.clone(),
        cgroup: linux.map(|linux| linux.cpuset_cgroup.clone()).unwrap_or_default(),
        cpu_shares: linux.map_or(0, |linux| linux.cpu_shares),
        allocated: allocated(config),
        config: config.msgpack_driver_config.clone(),
    }
}

/// What the scheduler gave the task: ports of the group, and of the task's own (deprecated) network block.
fn allocated(config: &TaskConfig) -> Allocated {
    let Some(resources) = &config.resources else {
        return Allocated::default();
    };
    let mut ports: Vec<AllocatedPort> = resources
        .ports
        .iter()
        .map(|port| AllocatedPort {
            label: port.label.clone(),
            host_port: port.value.into(),
            guest_port: port.to.into(),
            host_ip: port.host_ip.clone(),
        })
        .collect();
    let allocated = resources.allocated_resources.as_ref();
    for network in allocated
        .map(|allocated| allocated.networks.as_slice())
        .unwrap_or_default()
    {
        ports.extend(
            network
                .reserved_ports
                .iter()
                .chain(&network.dynamic_ports)
                .map(|port| AllocatedPort {
                    label: port.label.clone(),
                    host_port: port.value.into(),
                    guest_port: 0,
                    host_ip: network.ip.clone(),
                }),
        );
    }
    let memory = allocated.and_then(|allocated| allocated.memory.as_ref());
    let linux = resources.linux_resources.as_ref();
    Allocated {
        memory_mib: memory.map_or(0, |memory| memory.memory_mb),
        memory_max_mib: memory.map_or(0, |memory| memory.memory_max_mb),
        cores: linux.map_or_else(String::new, |linux| linux.cpuset_cpus.clone()),
        user: config.user.clone(),
        devices: config
            .devices
            .iter()
            .map(|device| device.host_path.clone())
            .collect(),
        mounts: config
            .mounts
            .iter()
            .map(|mount| mount.task_path.clone())
            .collect(),
        ports,
        whose: whose(config),
    }
}

/// Whose the task is. Its place in its group is in its environment alone.
fn whose(config: &TaskConfig) -> Whose {
    Whose {
        namespace: config.namespace.clone(),
        job: config.job_id.clone(),
        group: config.task_group_name.clone(),
        task: config.name.clone(),
        alloc_id: config.alloc_id.clone(),
        index: config
            .env
            .get("NOMAD_ALLOC_INDEX")
            .and_then(|index| index.parse().ok()),
    }
}
