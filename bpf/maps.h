/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * The maps, shared by all programs and pinned by name but for private ones. User space writes all of them but those
 * that count or remember; no map can be grown by a remote party, so none needs LRU eviction.
 */
#ifndef LINKSPAN_MAPS_H
#define LINKSPAN_MAPS_H

#include "abi.h"
#include "abi_check.h"
#include "lib/compiler.h"

/* What is remembered of one pair of sender and destination: see lib/flow.h. */
#ifdef LS_TRACE
#define LS_FLOW_BITS 1 /* nothing is remembered */
#else
#define LS_FLOW_BITS 10 /* 112 KiB a CPU, well inside its second-level cache */
#endif
struct ls_flow {
	__u64 epoch;
	struct ls_fdb to; /* ifindex 0: the kernel's */
	__u32 ifindex;    /* the sender's host end, or the parent */
	__u8 mac[6];      /* destination */
	__u16 ip4_id;     /* of the next outer IPv4 header */
	struct ls_endpoint endpoint;
	struct ls_peer peer; /* vni 0: the destination is no peer */
};

/* One slot: LS_ABI_VERSION of the loader that made the pins. */
LS_MAP("array", __u32, __u32, abi_version, 1, 0);

/* One slot: see abi.h. */
LS_MAP("array", __u32, __u64, epoch, 1, 0);

/* These four are preallocated: their elements lie close together, and an update never waits for memory. */
LS_MAP("hash", __u32, struct ls_endpoint, ep_by_if, LS_MAX_ENDPOINTS, 0);
LS_MAP("hash", struct ls_fdb_key, struct ls_fdb, fdb, LS_MAX_ENDPOINTS, 0);
LS_MAP("hash", __u32, struct ls_parent, parents, LS_MAX_PARENTS, 0);
LS_MAP("hash", struct ls_station_key, struct ls_endpoint, stations, LS_MAX_ENDPOINTS, 0);

/* Not per CPU, so the limit is the endpoint's on all of them; programs on two CPUs at once may let one more through. */
LS_MAP("array", __u32, struct ls_limit, limits, LS_MAX_ENDPOINTS, 0);

/* Read once a packet for a peer. The remote address in an element stays as long as a peer refers to it; a program may see
 * the rest half written when a way changes, and then loses the packet. */
LS_MAP("array", __u32, struct ls_node, nodes, LS_MAX_NODES, 0);

/* Read when a flow is not remembered. */
LS_MAP("hash", struct ls_fdb_key, struct ls_peer, peers, LS_MAX_PEERS, BPF_F_NO_PREALLOC);
LS_MAP("hash", struct ls_node_key, __u32, node_by_ip, LS_MAX_NODES, BPF_F_NO_PREALLOC);
LS_MAP("hash", __u32, __u32, vnis, LS_MAX_NODES, BPF_F_NO_PREALLOC);

/* Read for every packet of an uplink that is not VXLAN, the host's own included, unless the arrival is remembered. */
LS_MAP("hash", struct ls_direct_key, struct ls_direct, direct, LS_MAX_DIRECT, BPF_F_NO_PREALLOC);

/* Read a few times an hour per pair of endpoints: memory only for what is in use. */
LS_MAP("hash", struct ls_neigh4_key, struct ls_neighbour, neigh4, LS_MAX_NEIGHBOURS, BPF_F_NO_PREALLOC);
LS_MAP("hash", struct ls_neigh6_key, struct ls_neighbour, neigh6, LS_MAX_NEIGHBOURS, BPF_F_NO_PREALLOC);

/* Per CPU: a tc program runs in softirq context or with bottom halves off, so nothing else on the CPU touches
 * its copy in between and plain additions do. */
LS_COUNT_MAP("percpu_array", __u32, struct ls_counters, ep_counters, LS_MAX_ENDPOINTS, 0);
LS_COUNT_MAP("percpu_hash", struct ls_drop_key, __u64, ep_drops, LS_MAX_DROP_KEYS, BPF_F_NO_PREALLOC);

/* Read and written once a packet at its arrival; nothing else on the CPU touches it in between, as above. */
LS_COUNT_MAP("percpu_array", __u32, struct ls_sampling, sampling, 1, 0);
LS_COUNT_MAP("hash", struct ls_latency_key, struct ls_latency, latencies, LS_MAX_LATENCIES, BPF_F_NO_PREALLOC);

/* All zero: what an element of latencies begins with, too big for a program's stack. */
LS_PRIVATE_MAP("array", __u32, struct ls_latency, no_latency, 1, 0);

LS_PRIVATE_MAP("percpu_array", __u32, struct ls_flow, flows, 1 << LS_FLOW_BITS, 0);

#endif
