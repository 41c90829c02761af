// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/*
 * ls_ep_out: tc ingress of an endpoint's host end, which sees all that the endpoint sends. Drops what is forged or
 * malformed, answers ARP requests and neighbour solicitations for known addresses, sends unicast for an endpoint on the
 * same segment straight into its sandbox or, in VXLAN or direct, to the host that it is on, and leaves everything else to
 * the kernel. Reads epoch, ep_by_if, fdb, peers, nodes, direct, neigh4 and neigh6, writes ep_counters, ep_drops,
 * sampling, latencies and its own flows. Changes no packet but those that it answers or sends to other hosts; touches none of a device that is not in
 * ep_by_if.
 */
/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * Is a packet of an endpoint what the endpoint may send? A short line for the usual, a long one for all.
 */
#ifndef LINKSPAN_CHECK_H
#define LINKSPAN_CHECK_H

/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * Ethernet and VLAN headers: comparing MACs by words, finding the network header behind tags.
 */
#ifndef LINKSPAN_ETH_H
#define LINKSPAN_ETH_H

#include <uapi/linux/if_ether.h>
/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * Verdicts, and the one exit that counts them. A function that judges a packet returns a verdict >= 0, or a drop
 * reason negated: every packet of an endpoint ends in exactly one of out_fast, out_slow or a drop.
 */
#ifndef LINKSPAN_VERDICT_H
#define LINKSPAN_VERDICT_H

#include <uapi/linux/if_packet.h>
#include <uapi/linux/pkt_cls.h>
/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * The maps, shared by all programs and pinned by name but for private ones. User space writes all of them but those
 * that count or remember; no map can be grown by a remote party, so none needs LRU eviction.
 */
#ifndef LINKSPAN_MAPS_H
#define LINKSPAN_MAPS_H

/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * The one place where structs and constants shared by the eBPF programs, the C helpers and
 * Python are written. Only fixed-width types, explicit padding, fields big to small; keys are
 * zeroed before they are filled, because padding is part of a hash key. Python reads this file
 * through cffi (comments and preprocessor lines other than `#define NAME NUMBER` removed), so it
 * holds nothing else. Layout asserts stand in abi_check.h.
 *
 * Byte order: fields called ip4 and ip6 hold addresses in network order as they stand in the
 * packet; every other integer is in host order.
 */
#ifndef LINKSPAN_ABI_H
#define LINKSPAN_ABI_H

#define LS_ABI_VERSION 1
#define LS_MAX_ENDPOINTS 16384  /* slots, endpoints and FDB entries of one host */
#define LS_MAX_NEIGHBOURS 65536 /* IPv4, and as many IPv6, addresses that are answered for */
#define LS_MAX_DROP_KEYS 65536  /* (slot, reason) pairs that have dropped at least once */
#define LS_MAX_PARENTS 1024     /* devices that macvlan endpoints are on */
#define LS_MAX_PEERS 65536      /* endpoints of other hosts */
#define LS_MAX_NODES 4096       /* other hosts, and overlay networks */
#define LS_MAX_DIRECT 32768     /* addresses of both families of endpoints on overlay networks */
#define LS_MAX_LATENCIES 49152  /* (slot, kind) pairs of which something was timed */

/* Buckets are those of Prometheus's native histograms of schema 2, four to a factor of two: from 15 ns to 13 s, which with
 * the hash table's own fields fill 1 KiB. The first and the last take what is beyond. */
#define LS_LATENCY_BUCKETS 120
#define LS_LATENCY_SECOND 104 /* the bucket that ends at one second */

/* Segments from here on (2^31) are parents: this plus the ifindex. */
#define LS_PARENT_SEGMENT 2147483648

/* endpoint.flags */
#define LS_EP_FAST 1    /* unicast for a local endpoint, or of a station for its host, may take the fast path */
#define LS_EP_BRIDGED 2 /* station: macvlan in bridge mode, so its frames for another such one never leave the host */
#define LS_EP_ENGINE 4  /* a container engine's, which may give it link-local addresses and tell nobody */
#define LS_EP_VEPA 8    /* station in VEPA mode: what a switch sends back of its group packets is for the others too */
#define LS_EP_SWITCHED 16 /* station that is a veth pair: programs at its host end have judged what it sends */
#define LS_EP_LIMITED 64 /* station that is a macvlan device, with ls_station_out at its egress */

#define LS_EP_OVERLAY 32 /* on an overlay network: unicast for endpoints of other hosts may take the fast path too */

/* parent.flags */
#define LS_PARENT_HOST 1 /* the host and those stations that have LS_EP_FAST reach each other */

/* peer.flags */
#define LS_PEER_DIRECT 1 /* its node takes what is for the peer's own addresses without VXLAN */

/* neighbour.flags */
#define LS_NEIGH_ROUTER 1 /* sets the Router flag in a neighbour advertisement (RFC 4861, 4.4) */
#define LS_NEIGH_SILENT 2 /* not answered for */

/* Map epoch: array of one __u64. Programs remember what they found in ep_by_if, fdb, parents, stations, peers, vnis,
 * node_by_ip and direct until this value changes, so whoever changes one of these maps then writes a value here that was
 * never there before. */

/* Map ep_by_if: __u32 ifindex of the endpoint's host end -> endpoint. */
struct ls_endpoint {
	__u32 segment; /* the network's layer 2 segment on this host, > 0 */
	__u32 slot;    /* index into ep_counters, < LS_MAX_ENDPOINTS */
	__be32 ip4;    /* 0: none */
	__u8 mac[6];
	__u16 flags;      /* LS_EP_* */
	__u8 ip6[16];     /* all zero: none */
	__u8 ip6_ll[16];  /* link-local, EUI-64 of mac; all zero: none */
};

/* Map fdb: the endpoints that the fast path may deliver to, so only such as have LS_EP_FAST, and all switched stations.
 * On a parent with such, ff:ff:ff:ff:ff:ff is for the bridge that copies group packets to them. */
struct ls_fdb_key {
	__u32 segment;
	__u8 mac[6];
	__u8 pad[2];
};
struct ls_fdb {
	__u32 ifindex; /* host end of the endpoint that owns the MAC */
	__u32 slot;
};

/* Maps neigh4 and neigh6: whose an address is. ARP requests and neighbour solicitations are answered with it, and an
 * endpoint may send from the link-local ones that are its MAC's. */
struct ls_neigh4_key {
	__u32 segment;
	__be32 ip4;
};
struct ls_neigh6_key {
	__u32 segment;
	__u8 ip6[16];
};
struct ls_neighbour {
	__u8 mac[6];
	__u16 flags; /* LS_NEIGH_* */
};

/* Map parents: __u32 ifindex -> parent. */
struct ls_parent {
	__u32 segment; /* of the neighbours that the host is told of: LS_PARENT_SEGMENT | ifindex */
	__u8 mac[6];   /* the host's own */
	__u16 flags;   /* LS_PARENT_* */
};

/* Map stations: ls_station_key -> endpoint, the macvlan endpoints on all parents. */
struct ls_station_key {
	__u32 ifindex; /* of the parent */
	__u8 mac[6];
	__u8 pad[2];
};

/* Map peers: ls_fdb_key -> peer, the endpoints of other hosts that the fast path may send to and take packets from. */
struct ls_peer {
	__u32 vni;    /* of the network, > 0 (RFC 7348) */
	__u16 node;   /* index into nodes, < LS_MAX_NODES */
	__u16 flags;  /* LS_PEER_* */
	__be32 ip4;   /* 0: none */
	__u8 ip6[16]; /* all zero: none */
};

/* Map nodes: array, the other hosts. Addresses of both families stand in 16 bytes, IPv4 as in ::ffff:0:0/96 (RFC 4291,
 * 2.5.5.2); all three are of one family. */
struct ls_node {
	__u32 ifindex; /* of the device that leads there; 0: none, the kernel sends */
	__u32 mtu;     /* of the way there: the longest IP packet */
	__u8 local[16];
	__u8 remote[16];
	__u8 next_hop[16]; /* the remote address itself, or a router's */
	__u8 mac[6];       /* of the device that has the remote address; all zero: not known */
	__u8 local_mac[6]; /* of the device that leads there */
};

/* Map node_by_ip: whose address it is -> __u32 index into nodes. Map vnis: __u32 VNI -> __u32 segment. */
struct ls_node_key {
	__u8 remote[16];
};

/* Map direct: whose an address is, of the endpoints of this host on networks with direct packets: those that peers send
 * without VXLAN, to the node's MAC. Of such an endpoint's addresses it has all but the link-local one; as in ls_node. */
struct ls_direct_key {
	__u8 address[16];
};
struct ls_direct {
	__u64 from_ns; /* CLOCK_MONOTONIC: before, other nodes may not know the endpoint, so it sends in VXLAN */
	__u32 segment;
	__u8 mac[6];
	__u8 pad[6];
};

/* Map limits: array by slot, how often an endpoint may send what all others get a copy of. */
struct ls_limit {
	__u64 cost_ns; /* what a packet takes of each second; 0: no limit */
	__u64 spent;   /* the programs': CLOCK_MONOTONIC until which the packets so far have used the time up */
};

/* Map ep_counters: per-CPU array by slot. out: sent by the endpoint; in: delivered to it. Packets are
 * wire packets (a GSO packet counts its segments), bytes are the kernel's packet lengths, as device statistics have
 * them: with the Ethernet header, once for a GSO packet, and without an outer VLAN tag. */
struct ls_counters {
	__u64 out_fast_packets;
	__u64 out_fast_bytes;
	__u64 out_slow_packets;
	__u64 out_slow_bytes;
	__u64 in_fast_packets;
	__u64 in_fast_bytes;
	__u64 in_slow_packets;
	__u64 in_slow_bytes;
};

/* Map ep_drops: per-CPU hash, ls_drop_key -> __u64 packets. */
struct ls_drop_key {
	__u32 slot;
	__u32 reason; /* enum ls_drop_reason */
};

/* Map latencies: ls_latency_key -> ls_latency. Not per CPU: samples are rare, and are added atomically. */
enum ls_latency_kind {
	LS_LATENCY_FAST = 0,    /* from a packet's arrival until a program has handed it to the sandbox of slot */
	LS_LATENCY_SLOW = 1,    /* from there until the kernel brings it to that sandbox's host end */
	LS_LATENCY_TCP_RTT = 2, /* round trip of a TCP connection that slot has sent data on */
};
struct ls_latency_key {
	__u32 slot;
	__u32 kind; /* enum ls_latency_kind */
};
struct ls_latency {
	__u64 total_ns;
	__u64 buckets[120]; /* LS_LATENCY_BUCKETS, which cffi takes for no number */
};

/* Map sampling: per-CPU array of one, which packets are timed, and the one that the kernel has meanwhile. User space writes
 * all of it when the rate changes. */
struct ls_sampling {
	__u64 begin_ns; /* the programs': CLOCK_MONOTONIC of the last arrival if that is timed, else 0 */
	__u32 every;    /* one arrival in so many is timed; 0: none */
	__u32 left;     /* the programs': arrivals until the next that is */
	__u32 len;      /* the programs', of the packet that the kernel has; 0: none */
	__u8 macs[12];  /* its destination and source */
};

/* Never renumber or reuse: the number is the metric's label. Names without LS_DROP_ are the label text. */
enum ls_drop_reason {
	LS_DROP_NONE = 0,
	LS_DROP_MALFORMED = 1,     /* a header that the packet's own fields promise is not all there */
	LS_DROP_SPOOFED_MAC = 2,   /* Ethernet source is not the endpoint's */
	LS_DROP_SPOOFED_IP4 = 3,   /* IPv4 source is not the endpoint's */
	LS_DROP_SPOOFED_IP6 = 4,   /* IPv6 source is not the endpoint's */
	LS_DROP_SPOOFED_ARP = 5,   /* ARP sender MAC or IPv4 is not the endpoint's */
	LS_DROP_SPOOFED_ND = 6,    /* ND source or link-layer address option, or NA target, is not the endpoint's */
	LS_DROP_TOO_DEEP = 7,      /* more VLAN tags, IPv6 extension headers or ND options than are looked through */
	LS_DROP_STORM = 8,         /* more packets for everybody than the endpoint may send in a second */
	LS_DROP_SPOOFED_PEER = 9,  /* came from a node that the Ethernet source is no endpoint of */
};

/* What programs that are built to be traced tell of one packet, in order; see lib/trace.h. The operand is an ifindex where
 * nothing else is said, and 0 where there is nothing to say. Names without LS_TOLD_ are what users see. */
#define LS_MAX_DECISIONS 16
enum ls_told {
	LS_TOLD_DROP = 1,	    /* enum ls_drop_reason */
	LS_TOLD_REDIRECT = 2,	    /* out by the device */
	LS_TOLD_REDIRECT_IN = 3,    /* in at the device, as if it had come from its wire */
	LS_TOLD_REDIRECT_PEER = 4,  /* into the sandbox, out of the other end of this host end */
	LS_TOLD_REDIRECT_NEIGH = 5, /* out by the device, with the MAC of the next hop */
	LS_TOLD_COPY = 6,	    /* a copy goes out by the device */
	LS_TOLD_COPY_IN = 7,	    /* a copy comes in at the device */
	LS_TOLD_NO_ENDPOINT = 8,    /* no endpoint is behind the device */
	LS_TOLD_SENDER = 9,	    /* slot: the packet is one that this endpoint may send */
	LS_TOLD_NOT_CONNECTED = 10, /* the sender may exchange packets with no other endpoint */
	LS_TOLD_FDB = 11,	    /* host end of the endpoint that has the destination MAC */
	LS_TOLD_NO_FDB = 12,	    /* no endpoint of this host has the destination MAC */
	LS_TOLD_TOO_LONG = 13,	    /* longer than the MTU of the receiver */
	LS_TOLD_ANSWERED = 14,	    /* the question is the answer now */
	LS_TOLD_NOT_ANSWERED = 15,  /* nobody is known who has the address that is asked for */
	LS_TOLD_PEER = 16,	    /* index into nodes, of the host that the destination MAC is on */
	LS_TOLD_NO_PEER = 17,	    /* no endpoint of another host has the destination MAC */
	LS_TOLD_NO_WAY = 18,	    /* index into nodes: no way there is known */
	LS_TOLD_WAY_TOO_SMALL = 19, /* MTU of the way: the packet does not fit */
	LS_TOLD_VXLAN = 20,	    /* VNI in the outer headers */
	LS_TOLD_DIRECT = 21,	    /* index into nodes: as it is, to the MAC of the host */
	LS_TOLD_HOST = 22,	    /* parent: for the host */
	LS_TOLD_WIRE = 23,	    /* parent: for what is at the other end of its wire */
	LS_TOLD_STATION = 24,	    /* slot of the station that is the receiver */
	LS_TOLD_NO_TUNNEL = 25,	    /* no VXLAN, or such as the kernel has to look at */
	LS_TOLD_SEGMENT = 26,	    /* segment of the VNI */
	LS_TOLD_NO_SEGMENT = 27,    /* VNI that no network here has */
	LS_TOLD_NODE = 28,	    /* index into nodes, of the host that the packet came from */
	LS_TOLD_NO_NODE = 29,	    /* came from no host that is known, or is for another address than that knows */
};

struct ls_decision {
	__u32 what; /* enum ls_told */
	__u32 operand;
};

/* Map decisions: array of one. User space sets `count` to 0 before a run. */
struct ls_decisions {
	__u32 count;
	struct ls_decision each[16]; /* LS_MAX_DECISIONS: cffi takes numbers alone here */
};

#endif
/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * Size and every offset of the structs in abi.h. Included after abi.h by the eBPF programs and by the C
 * helpers, so that a layout that two compilers would see differently breaks the build of one of them.
 */
#ifndef LINKSPAN_ABI_CHECK_H
#define LINKSPAN_ABI_CHECK_H

#define LS_ASSERT_SIZE(type, size) _Static_assert(sizeof(type) == (size), "size of " #type)
#define LS_ASSERT_AT(type, field, offset) \
	_Static_assert(__builtin_offsetof(type, field) == (offset), "offset of " #field " in " #type)

LS_ASSERT_SIZE(struct ls_endpoint, 52);
LS_ASSERT_AT(struct ls_endpoint, segment, 0);
LS_ASSERT_AT(struct ls_endpoint, slot, 4);
LS_ASSERT_AT(struct ls_endpoint, ip4, 8);
LS_ASSERT_AT(struct ls_endpoint, mac, 12);
LS_ASSERT_AT(struct ls_endpoint, flags, 18);
LS_ASSERT_AT(struct ls_endpoint, ip6, 20);
LS_ASSERT_AT(struct ls_endpoint, ip6_ll, 36);

LS_ASSERT_SIZE(struct ls_fdb_key, 12);
LS_ASSERT_AT(struct ls_fdb_key, segment, 0);
LS_ASSERT_AT(struct ls_fdb_key, mac, 4);
LS_ASSERT_AT(struct ls_fdb_key, pad, 10);

LS_ASSERT_SIZE(struct ls_fdb, 8);
LS_ASSERT_AT(struct ls_fdb, ifindex, 0);
LS_ASSERT_AT(struct ls_fdb, slot, 4);

LS_ASSERT_SIZE(struct ls_neigh4_key, 8);
LS_ASSERT_AT(struct ls_neigh4_key, segment, 0);
LS_ASSERT_AT(struct ls_neigh4_key, ip4, 4);

LS_ASSERT_SIZE(struct ls_neigh6_key, 20);
LS_ASSERT_AT(struct ls_neigh6_key, segment, 0);
LS_ASSERT_AT(struct ls_neigh6_key, ip6, 4);

LS_ASSERT_SIZE(struct ls_neighbour, 8);
LS_ASSERT_AT(struct ls_neighbour, mac, 0);
LS_ASSERT_AT(struct ls_neighbour, flags, 6);

LS_ASSERT_SIZE(struct ls_parent, 12);
LS_ASSERT_AT(struct ls_parent, segment, 0);
LS_ASSERT_AT(struct ls_parent, mac, 4);
LS_ASSERT_AT(struct ls_parent, flags, 10);

LS_ASSERT_SIZE(struct ls_station_key, 12);
LS_ASSERT_AT(struct ls_station_key, ifindex, 0);
LS_ASSERT_AT(struct ls_station_key, mac, 4);
LS_ASSERT_AT(struct ls_station_key, pad, 10);

LS_ASSERT_SIZE(struct ls_peer, 28);
LS_ASSERT_AT(struct ls_peer, vni, 0);
LS_ASSERT_AT(struct ls_peer, node, 4);
LS_ASSERT_AT(struct ls_peer, flags, 6);
LS_ASSERT_AT(struct ls_peer, ip4, 8);
LS_ASSERT_AT(struct ls_peer, ip6, 12);

LS_ASSERT_SIZE(struct ls_node, 68);
LS_ASSERT_AT(struct ls_node, ifindex, 0);
LS_ASSERT_AT(struct ls_node, mtu, 4);
LS_ASSERT_AT(struct ls_node, local, 8);
LS_ASSERT_AT(struct ls_node, remote, 24);
LS_ASSERT_AT(struct ls_node, next_hop, 40);
LS_ASSERT_AT(struct ls_node, mac, 56);
LS_ASSERT_AT(struct ls_node, local_mac, 62);

LS_ASSERT_SIZE(struct ls_node_key, 16);
LS_ASSERT_AT(struct ls_node_key, remote, 0);

LS_ASSERT_SIZE(struct ls_direct_key, 16);
LS_ASSERT_AT(struct ls_direct_key, address, 0);

LS_ASSERT_SIZE(struct ls_direct, 24);
LS_ASSERT_AT(struct ls_direct, from_ns, 0);
LS_ASSERT_AT(struct ls_direct, segment, 8);
LS_ASSERT_AT(struct ls_direct, mac, 12);
LS_ASSERT_AT(struct ls_direct, pad, 18);

LS_ASSERT_SIZE(struct ls_limit, 16);
LS_ASSERT_AT(struct ls_limit, cost_ns, 0);
LS_ASSERT_AT(struct ls_limit, spent, 8);

LS_ASSERT_SIZE(struct ls_counters, 64);
LS_ASSERT_AT(struct ls_counters, out_fast_packets, 0);
LS_ASSERT_AT(struct ls_counters, out_fast_bytes, 8);
LS_ASSERT_AT(struct ls_counters, out_slow_packets, 16);
LS_ASSERT_AT(struct ls_counters, out_slow_bytes, 24);
LS_ASSERT_AT(struct ls_counters, in_fast_packets, 32);
LS_ASSERT_AT(struct ls_counters, in_fast_bytes, 40);
LS_ASSERT_AT(struct ls_counters, in_slow_packets, 48);
LS_ASSERT_AT(struct ls_counters, in_slow_bytes, 56);

LS_ASSERT_SIZE(struct ls_drop_key, 8);
LS_ASSERT_AT(struct ls_drop_key, slot, 0);
LS_ASSERT_AT(struct ls_drop_key, reason, 4);

LS_ASSERT_SIZE(struct ls_latency_key, 8);
LS_ASSERT_AT(struct ls_latency_key, slot, 0);
LS_ASSERT_AT(struct ls_latency_key, kind, 4);

LS_ASSERT_SIZE(struct ls_latency, 968);
LS_ASSERT_AT(struct ls_latency, total_ns, 0);
LS_ASSERT_AT(struct ls_latency, buckets, 8);
_Static_assert(sizeof(((struct ls_latency *)0)->buckets) == 8 * LS_LATENCY_BUCKETS, "buckets of struct ls_latency");

LS_ASSERT_SIZE(struct ls_sampling, 32);
LS_ASSERT_AT(struct ls_sampling, begin_ns, 0);
LS_ASSERT_AT(struct ls_sampling, every, 8);
LS_ASSERT_AT(struct ls_sampling, left, 12);
LS_ASSERT_AT(struct ls_sampling, len, 16);
LS_ASSERT_AT(struct ls_sampling, macs, 20);

LS_ASSERT_SIZE(struct ls_decision, 8);
LS_ASSERT_AT(struct ls_decision, what, 0);
LS_ASSERT_AT(struct ls_decision, operand, 4);

LS_ASSERT_SIZE(struct ls_decisions, 132);
LS_ASSERT_AT(struct ls_decisions, count, 0);
LS_ASSERT_AT(struct ls_decisions, each, 4);

#endif
/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * Compiler and loader glue: inlining, branch hints, word loads, and the macros through which maps are
 * defined. Nothing outside this file and maps.h knows that bcc compiles the programs.
 */
#ifndef LINKSPAN_COMPILER_H
#define LINKSPAN_COMPILER_H

#include <uapi/linux/types.h>

/* bcc makes a program of every function that is not static. */
#define LS_INLINE static __always_inline

#ifndef likely
#define likely(x) __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)
#endif

/* Keeps the compiler from copying what follows for each value that it knows `x` may have: the verifier would walk every
 * copy. */
#define LS_HIDE(x) asm volatile("" : "+r"(x))

/* The loader passes the directory of the pinned maps as LS_MAP_DIR, a string literal. bcc opens the map of that
 * path if there is one, so that counters and endpoints outlive a change of programs; the loader has checked its
 * shape before. */
#define LS_MAP(_type, _key, _value, _name, _max_entries, _flags) \
	BPF_TABLE_PINNED(_type, _key, _value, _name, _max_entries, LS_MAP_DIR "/" #_name, _flags)

/* A map that belongs to its program alone: not pinned, gone with it. */
#define LS_PRIVATE_MAP(_type, _key, _value, _name, _max_entries, _flags) \
	BPF_F_TABLE(_type, _key, _value, _name, _max_entries, _flags)

/* The loader passes LS_TRACE, the directory of the map of one value that traced programs tell their decisions in, to build
 * them. They count for nobody: what programs count in is their own there, and holds next to nothing. */
#ifdef LS_TRACE
#define LS_TRACE_MAP(_value, _name) BPF_TABLE_PINNED("array", __u32, _value, _name, 1, LS_TRACE "/" #_name, 0)
#define LS_COUNT_MAP(_type, _key, _value, _name, _max_entries, _flags) \
	LS_PRIVATE_MAP(_type, _key, _value, _name, 1, _flags)
#else
#define LS_COUNT_MAP LS_MAP
#endif

/* Unaligned words of packets and map values, in memory order. All machines that the kernel's BPF JITs run the
 * fast path on load them in one instruction; the verifier allows it where the kernel does. */
LS_INLINE __u16 ls_load16(const void *from)
{
	return *(const __u16 *)from;
}

LS_INLINE __u32 ls_load32(const void *from)
{
	return *(const __u32 *)from;
}

LS_INLINE __u64 ls_load64(const void *from)
{
	return *(const __u64 *)from;
}

#endif

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
/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * How long packets take from their arrival until they are handed to a sandbox, one in `every`.
 *
 * A program that packets arrive at begins with ls_arrived, which says when, or that this packet is not timed. The fast path
 * ends with ls_delivered_fast. What the kernel gets is noted by ls_left_to_kernel, and known again at the receiver's host end by
 * ls_delivered_slow: a bridge brings it there before anything else arrives on the CPU. A packet that is queued on its way, for
 * another CPU or as in a VXLAN device, meanwhile loses its note to the next arrival, and is not counted: better none than
 * another's time.
 */
#ifndef LINKSPAN_LATENCY_H
#define LINKSPAN_LATENCY_H

/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * The bucket of ls_latency that a duration belongs to.
 */
#ifndef LINKSPAN_BUCKET_H
#define LINKSPAN_BUCKET_H

/* Within the first bucket, and within the last. */
#define LS_LATENCY_MIN_NS 14ULL
#define LS_LATENCY_MAX_NS 13000000000ULL

/* 1 if a < b, for numbers below 2^63. No jump: the verifier would walk all that follows once for each outcome. */
LS_INLINE __u32 ls_is_less(__u64 a, __u64 b)
{
	return (a - b) >> 63;
}

/* The position of the highest bit that is set; `x` is not 0. By counting the bits of 2^(position+1) - 1, likewise without a
 * jump (Warren, Hacker's Delight, 5-1 and 5-3). */
LS_INLINE __u32 ls_log2(__u64 x)
{
	x |= x >> 1;
	x |= x >> 2;
	x |= x >> 4;
	x |= x >> 8;
	x |= x >> 16;
	x |= x >> 32;
	x -= (x >> 1) & 0x5555555555555555ULL;
	x = (x & 0x3333333333333333ULL) + ((x >> 2) & 0x3333333333333333ULL);
	x = (x + (x >> 4)) & 0x0f0f0f0f0f0f0f0fULL;
	return (x * 0x0101010101010101ULL >> 56) - 1;
}

/*
 * Bounds are 2^(k/4) seconds and belong to the bucket below. In units of 2^-38 s, rounded up, a duration is at most 2^n
 * exactly if one less than it has no bit from n on. The bounds between are 2^(1/4), 2^(1/2) and 2^(3/4) of 2^n, here of
 * 2^62; no whole number of nanoseconds lies between one of them and where it is in these units (tests/bpf/test_latency.py
 * tries all).
 */
LS_INLINE __u32 ls_latency_bucket(__u64 ns)
{
	__u64 units, mantissa;
	__u32 octave;

	if (ns < LS_LATENCY_MIN_NS)
		ns = LS_LATENCY_MIN_NS;
	if (ns > LS_LATENCY_MAX_NS)
		ns = LS_LATENCY_MAX_NS;
	units = ((ns << 29) + 1953124) / 1953125 - 1; /* 2^38 / 10^9 = 2^29 / 5^9 */
	octave = ls_log2(units);
	mantissa = units << (62 - octave);
	return LS_LATENCY_SECOND + 4 * (octave + 1 - 38) - ls_is_less(mantissa, 0x4c1bf828c6dc54b7ULL) -
	       ls_is_less(mantissa, 0x5a827999fcef3242ULL) - ls_is_less(mantissa, 0x6ba27e656b4eb57aULL);
}

#endif

/* Whether this packet is one of those that are looked at. */
LS_INLINE int ls_is_sampled(struct ls_sampling *sample)
{
	if (likely(sample->left)) {
		sample->left -= 1;
		return 0;
	}
	if (!sample->every)
		return 0;
	/* At random, or of two flows that take turns only one would be seen. The mean is `every`. */
	sample->left = bpf_get_prandom_u32() % (2 * sample->every - 1);
	return 1;
}

/* A packet has arrived. Never null, but the verifier does not know. */
LS_INLINE struct ls_sampling *ls_arrived(void)
{
	__u32 first = 0;
	struct ls_sampling *sample = sampling.lookup(&first);

	if (!sample)
		return 0;
	sample->begin_ns = 0;
	if (ls_is_sampled(sample)) {
		sample->len = 0;
		sample->begin_ns = bpf_ktime_get_ns();
	}
	return sample;
}

LS_INLINE void ls_add_latency(__u32 slot, __u32 kind, __u64 ns)
{
	struct ls_latency_key key = { .slot = slot, .kind = kind };
	struct ls_latency *latency = latencies.lookup(&key);
	__u32 bucket = 0;

	if (!latency) {
		struct ls_latency *empty = no_latency.lookup(&bucket);

		if (!empty)
			return;
		/* Another CPU may have made it since: then this makes none. */
		latencies.insert(&key, empty);
		latency = latencies.lookup(&key);
		if (!latency)
			return;
	}
	bucket = ls_latency_bucket(ns);
	if (bucket >= LS_LATENCY_BUCKETS)
		return; /* for the verifier */
	lock_xadd(&latency->buckets[bucket], 1);
	lock_xadd(&latency->total_ns, ns);
}

/* The fast path is about to hand the packet to the sandbox of the endpoint with this slot. */
LS_INLINE void ls_delivered_fast(struct ls_sampling *sample, __u32 slot)
{
	if (likely(!sample->begin_ns))
		return;
	ls_add_latency(slot, LS_LATENCY_FAST, bpf_ktime_get_ns() - sample->begin_ns);
	sample->begin_ns = 0;
}

/* The kernel gets the packet, whose inner Ethernet header is at `offset` and which has `len` bytes from there on. */
LS_INLINE void ls_left_to_kernel(struct ls_sampling *sample, struct __sk_buff *skb, __u32 offset, __u32 len)
{
	if (likely(!sample->begin_ns))
		return;
	if (!bpf_skb_load_bytes(skb, offset, sample->macs, sizeof(sample->macs)))
		sample->len = len;
}

/* Whether two pairs of MACs are the same. */
LS_INLINE int ls_are_macs(const __u8 *a, const __u8 *b)
{
	return ls_load64(a) == ls_load64(b) && ls_load32(a + 8) == ls_load32(b + 8);
}

/* The kernel has brought a packet to the host end of the endpoint with this slot. The first copy of one for a group is the
 * one that counts. */
LS_INLINE void ls_delivered_slow(const struct __sk_buff *skb, __u32 slot)
{
	const __u8 *macs = (void *)(long)skb->data;
	__u32 first = 0;
	struct ls_sampling *sample = sampling.lookup(&first);

	if (!sample || likely(!sample->begin_ns) || sample->len != skb->len ||
	    (void *)(macs + sizeof(sample->macs)) > (void *)(long)skb->data_end || !ls_are_macs(macs, sample->macs))
		return;
	ls_add_latency(slot, LS_LATENCY_SLOW, bpf_ktime_get_ns() - sample->begin_ns);
	sample->begin_ns = 0;
}

#endif
/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * The round trip that TCP knows of, read from the socket that a packet was sent from: it comes with the packet as far as an
 * endpoint's host end, out of its network namespace (kernel commit 9c4c325252c5, Linux 4.20). No packet is sent for it, and
 * nothing is asked of TCP.
 */
#ifndef LINKSPAN_TCP_H
#define LINKSPAN_TCP_H

/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * The headers up to TCP's and UDP's.
 */
#ifndef LINKSPAN_L4_H
#define LINKSPAN_L4_H

#include <uapi/linux/if_ether.h>
#include <uapi/linux/in.h>
#include <uapi/linux/ip.h>
#include <uapi/linux/ipv6.h>
#include <uapi/linux/tcp.h>
#include <uapi/linux/udp.h>

#define LS_IP4_NO_OPTIONS 0x45 /* version 4, 5 words of header */

/* The length of an untagged packet's headers from the network header on, which each segment of a GSO packet gets; 0 where they
 * are not to be seen, or another protocol's. As much as an IPv4 header is known to be there behind `eth`. */
LS_INLINE __u32 ls_l4_headers(const struct __sk_buff *skb, const struct ethhdr *eth)
{
	const void *data_end = (void *)(long)skb->data_end;
	const struct iphdr *ip = (void *)(eth + 1);
	__u32 offset = sizeof(*ip);
	const struct tcphdr *tcp;
	__u8 proto = ip->protocol;

	if (eth->h_proto == bpf_htons(ETH_P_IPV6)) {
		proto = *((const __u8 *)ip + 6);
		offset = sizeof(struct ipv6hdr);
	} else if (*(const __u8 *)ip != LS_IP4_NO_OPTIONS) {
		return 0;
	}
	if (proto == IPPROTO_UDP)
		return offset + sizeof(struct udphdr);
	tcp = (const void *)ip + offset;
	if (proto != IPPROTO_TCP || (void *)(tcp + 1) > data_end)
		return 0;
	return offset + tcp->doff * 4;
}

#endif

/* Whether the packet, which a TCP socket has sent, has data: its own or, in a tunnel, another packet. */
LS_INLINE int ls_has_data(const struct __sk_buff *skb)
{
	const struct ethhdr *eth = (void *)(long)skb->data;
	__u32 headers;

	if ((void *)(eth + 1) + sizeof(struct iphdr) > (void *)(long)skb->data_end)
		return 0;
	headers = ls_l4_headers(skb, eth);
	return headers && skb->len > ETH_HLEN + headers;
}

/* The smoothed round trip of the connection that the packet is of; 0 if none is known. Who has only acknowledged for a while
 * knows none that is worth telling, so it is that of packets with data alone. */
LS_INLINE __u64 ls_tcp_rtt_ns(struct __sk_buff *skb)
{
	struct bpf_sock *sk = skb->sk;
	struct bpf_tcp_sock *tcp;

	if (!sk)
		return 0;
	sk = bpf_sk_fullsock(sk);
	if (!sk)
		return 0;
	tcp = bpf_tcp_sock(sk);
	if (!tcp || !ls_has_data(skb))
		return 0;
	return (tcp->srtt_us >> 3) * 1000ULL; /* it is kept in eighths */
}

/* Counts the round trip of the connection that a packet of the endpoint with this slot is of. */
LS_INLINE void ls_add_tcp_rtt(struct __sk_buff *skb, __u32 slot)
{
	__u64 ns = ls_tcp_rtt_ns(skb);

	if (ns)
		ls_add_latency(slot, LS_LATENCY_TCP_RTT, ns);
}

/* For a packet that has arrived from its endpoint: what is spent here is no part of its own time. */
LS_INLINE void ls_sent(struct ls_sampling *sample, struct __sk_buff *skb, __u32 slot)
{
	__u64 now;

	if (likely(!sample->begin_ns))
		return;
	now = bpf_ktime_get_ns();
	ls_add_tcp_rtt(skb, slot);
	sample->begin_ns += bpf_ktime_get_ns() - now;
}

/* For a packet on its way out of a device, where no arrival is timed. */
LS_INLINE void ls_leaves(struct __sk_buff *skb, __u32 slot)
{
	__u32 first = 0;
	struct ls_sampling *sample = sampling.lookup(&first);

	if (sample && unlikely(ls_is_sampled(sample)))
		ls_add_tcp_rtt(skb, slot);
}

#endif
/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * What a program tells of one packet when it is built to be traced (LS_TRACE), and nothing in a program that runs on a
 * device: there the macros leave no instruction. A traced program runs by prog test-run alone. It looks into the same maps,
 * has counters and flows of its own, copies nothing to anyone, and spends no endpoint's limit (docs/adr/0022-trace.md).
 */
#ifndef LINKSPAN_TRACE_H
#define LINKSPAN_TRACE_H


#ifdef LS_TRACE

LS_TRACE_MAP(struct ls_decisions, decisions);

LS_INLINE void ls_tell(__u32 what, __u32 operand)
{
	__u32 first = 0, count;
	struct ls_decisions *told = decisions.lookup(&first);

	if (!told)
		return;
	count = told->count;
	if (count >= LS_MAX_DECISIONS)
		return;
	told->each[count].what = what;
	told->each[count].operand = operand;
	told->count = count + 1;
}

#define LS_TELL(what, operand) ls_tell(LS_TOLD_##what, operand)
#define LS_TELL_FOUND(is_found, what, operand, other) \
	do { \
		if (is_found) \
			LS_TELL(what, operand); \
		else \
			LS_TELL(other, 0); \
	} while (0)

/* A test run redirects nothing, but a copy would be sent. */
#define bpf_redirect(ifindex, flags) \
	(ls_tell((flags) & BPF_F_INGRESS ? LS_TOLD_REDIRECT_IN : LS_TOLD_REDIRECT, ifindex), bpf_redirect(ifindex, flags))
#define bpf_redirect_peer(ifindex, flags) \
	(ls_tell(LS_TOLD_REDIRECT_PEER, ifindex), bpf_redirect_peer(ifindex, flags))
#define ls_redirect_neigh(ifindex, next, len, flags) \
	(ls_tell(LS_TOLD_REDIRECT_NEIGH, ifindex), ls_redirect_neigh(ifindex, next, len, flags))
#define bpf_clone_redirect(skb, ifindex, flags) \
	ls_tell((flags) & BPF_F_INGRESS ? LS_TOLD_COPY_IN : LS_TOLD_COPY, ifindex)

/* A test run can set neither, but cb. */
#define LS_NOTE_IN(skb) ((skb)->cb[0])
#define LS_CLASS_OF(skb) ((skb)->cb[0])

#else

#define LS_TELL(what, operand) \
	do { \
	} while (0)
#define LS_TELL_FOUND(is_found, what, operand, other) LS_TELL(what, operand)
#define LS_NOTE_IN(skb) ((skb)->tc_index)
#define LS_CLASS_OF(skb) ((skb)->tc_classid)

#endif

#endif

enum ls_verdict {
	LS_KERNEL = 0,  /* slow path: the kernel gets the packet as it is */
	LS_FORWARD = 1, /* checked: the fast path takes it if it knows the destination */
	LS_PEER = 2,    /* fast path: straight into the sandbox of an endpoint */
	LS_REMOTE = 3,  /* fast path: to the host of an endpoint of another host */
};

/* What stands on the wire: a GSO packet is as many packets as it has segments. The kernel leaves gso_segs at 0
 * for GSO packets of untrusted origin (a packet socket's virtio header); they count as one. */
LS_INLINE __u64 ls_wire_packets(const struct __sk_buff *skb)
{
	__u32 segments = skb->gso_segs;

	return segments ? segments : 1;
}

LS_INLINE void ls_count_drop(__u32 slot, __u32 reason)
{
	struct ls_drop_key key = { .slot = slot, .reason = reason };
	__u64 *packets = ep_drops.lookup(&key);
	__u64 one = 1;

	LS_TELL(DROP, reason);
	if (packets)
		*packets += 1;
	else
		/* Another CPU may make the element first; that is no loss, because a program's update of a
		 * per-CPU element touches its own CPU's copy alone. */
		ep_drops.update(&key, &one);
}

/* What an endpoint has sent. Nothing is counted for a slot that does not exist. */
LS_INLINE void ls_count_out(const struct __sk_buff *skb, __u32 slot, int is_fast)
{
	struct ls_counters *counters = ep_counters.lookup(&slot);

	if (!counters)
		return;
	if (is_fast) {
		counters->out_fast_packets += ls_wire_packets(skb);
		counters->out_fast_bytes += skb->len;
	} else {
		counters->out_slow_packets += ls_wire_packets(skb);
		counters->out_slow_bytes += skb->len;
	}
}

/* What is delivered to an endpoint. */
LS_INLINE void ls_count_in(const struct __sk_buff *skb, __u32 slot, int is_fast)
{
	struct ls_counters *counters = ep_counters.lookup(&slot);

	if (!counters)
		return;
	if (is_fast) {
		counters->in_fast_packets += ls_wire_packets(skb);
		counters->in_fast_bytes += skb->len;
	} else {
		counters->in_slow_packets += ls_wire_packets(skb);
		counters->in_slow_bytes += skb->len;
	}
}

/* The exit of the program at the endpoint's outward side. `to` matters for LS_PEER alone. */
LS_INLINE int ls_exit_out(struct __sk_buff *skb, __u32 slot, int verdict, const struct ls_fdb *to,
			  struct ls_sampling *sample)
{
	struct ls_counters *counters;
	__u64 packets, bytes;

	if (unlikely(verdict < 0)) {
		ls_count_drop(slot, -verdict);
		return TC_ACT_SHOT;
	}
	ls_sent(sample, skb, slot);
	packets = ls_wire_packets(skb);
	bytes = skb->len;
	counters = ep_counters.lookup(&slot);
	if (unlikely(verdict != LS_PEER)) {
		if (counters) {
			counters->out_slow_packets += packets;
			counters->out_slow_bytes += bytes;
		}
		ls_left_to_kernel(sample, skb, 0, bytes);
		return TC_ACT_UNSPEC; /* not OK: programs and filters behind this one run too */
	}
	if (counters) {
		counters->out_fast_packets += packets;
		counters->out_fast_bytes += bytes;
	}
	slot = to->slot;
	counters = ep_counters.lookup(&slot);
	if (counters) {
		counters->in_fast_packets += packets;
		counters->in_fast_bytes += bytes;
	}
	/* The host end's own MAC is not the packet's, so eth_type_trans() took it for another host's, and
	 * ip_rcv() in the sandbox would drop it. */
	bpf_skb_change_type(skb, PACKET_HOST);
	ls_delivered_fast(sample, slot);
	return bpf_redirect_peer(to->ifindex, 0);
}

/* The exit of the program at the endpoint's inward side: what the slow path delivers. */
LS_INLINE int ls_exit_in(const struct __sk_buff *skb, __u32 slot)
{
	ls_count_in(skb, slot, 0);
	ls_delivered_slow(skb, slot);
	return TC_ACT_UNSPEC;
}

#endif

/* VLAN tags that are looked through, the one that the kernel keeps beside the packet included (802.1ad has two). */
#define LS_VLAN_DEPTH 2

/* A packet's network header. */
struct ls_l3 {
	__u32 offset; /* from the start of the Ethernet header */
	__be16 proto_be;
	__u16 tags;
};

struct ls_vlan_tag {
	__be16 tci_be;
	__be16 proto_be; /* of what follows the tag */
};

/* For packets and map values; 32-bit words. */
LS_INLINE int ls_mac_equal(const void *a, const void *b)
{
	return ((ls_load32(a) ^ ls_load32(b)) | (ls_load16(a + 4) ^ ls_load16(b + 4))) == 0;
}

/* For copies on the stack, where the verifier insists on alignment; 16-bit words. */
LS_INLINE int ls_mac_copy_equal(const void *a, const void *b)
{
	return ((ls_load16(a) ^ ls_load16(b)) | (ls_load16(a + 2) ^ ls_load16(b + 2)) |
		(ls_load16(a + 4) ^ ls_load16(b + 4))) == 0;
}

LS_INLINE int ls_is_group(const __u8 *mac)
{
	return mac[0] & 1;
}

/* For packets. */
LS_INLINE int ls_is_broadcast(const __u8 *mac)
{
	return (ls_load32(mac) & ls_load32(mac + 2)) == 0xffffffff;
}

LS_INLINE int ls_is_tag(__be16 proto_be)
{
	return proto_be == bpf_htons(ETH_P_8021Q) || proto_be == bpf_htons(ETH_P_8021AD);
}

/* Whether the packet has a VLAN tag, in it or, as the kernel keeps the outer one, beside it. */
LS_INLINE int ls_is_tagged(const struct __sk_buff *skb, const struct ethhdr *eth)
{
	return skb->vlan_present || ls_is_tag(eth->h_proto);
}

/* Whether an endpoint may send from a link-local address that is not in its record; `owner` is what neigh4 or neigh6
 * has of it. Returns LS_FORWARD; LS_KERNEL where nobody is known to have it, so that it may be one that an engine has
 * given the endpoint; or the drop reason negated. */
LS_INLINE int ls_check_owner(const struct ls_endpoint *ep, const struct ls_neighbour *owner, int reason)
{
	if (owner)
		return ls_mac_equal(owner->mac, ep->mac) ? LS_FORWARD : -reason;
	return ep->flags & LS_EP_ENGINE ? LS_KERNEL : -reason;
}

/* Finds the network header of a packet whose Ethernet header says proto_be. Returns 0, or a drop reason negated. */
LS_INLINE int ls_skip_tags(struct __sk_buff *skb, __be16 proto_be, struct ls_l3 *l3)
{
	struct ls_vlan_tag tag;

	l3->offset = ETH_HLEN;
	l3->tags = skb->vlan_present ? 1 : 0;
#pragma unroll
	for (int i = 0; i <= LS_VLAN_DEPTH; i++) {
		if (!ls_is_tag(proto_be))
			break;
		if (++l3->tags > LS_VLAN_DEPTH)
			return -LS_DROP_TOO_DEEP;
		if (bpf_skb_load_bytes(skb, l3->offset, &tag, sizeof(tag)))
			return -LS_DROP_MALFORMED;
		l3->offset += sizeof(tag);
		proto_be = tag.proto_be;
	}
	l3->proto_be = proto_be;
	return 0;
}

#endif
/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * IPv4 and ARP of an endpoint: is the sender who it must be, and can an ARP request be answered here.
 */
#ifndef LINKSPAN_IPV4_H
#define LINKSPAN_IPV4_H

#include <uapi/linux/ip.h>

/* RFC 826. <linux/if_arp.h> wants a C library. */
#define LS_ARP_HTYPE_ETHERNET 1
#define LS_ARP_REQUEST 1
#define LS_ARP_REPLY 2

/* ARP for IPv4 over Ethernet. */
struct ls_arp {
	__be16 htype_be;
	__be16 ptype_be;
	__u8 hlen;
	__u8 plen;
	__be16 op_be;
	__u8 sha[ETH_ALEN];
	__u8 spa[4];
	__u8 tha[ETH_ALEN];
	__u8 tpa[4];
};

struct ls_arp_frame {
	struct ethhdr eth;
	struct ls_arp arp;
} __attribute__((packed));

/* 169.254.0.0/16 (RFC 3927). */
LS_INLINE int ls_is_link_local4(__be32 ip4)
{
	return (ip4 & bpf_htonl(0xffff0000)) == bpf_htonl(0xa9fe0000);
}

/* Whether the endpoint may send from the address, as ls_check_owner() says it. */
LS_INLINE int ls_check_own_ip4(const struct ls_endpoint *ep, __be32 ip4, int reason)
{
	struct ls_neigh4_key key = { .segment = ep->segment, .ip4 = ip4 };

	if (ip4 == ep->ip4)
		return LS_FORWARD;
	if (!ls_is_link_local4(ip4))
		return -reason;
	return ls_check_owner(ep, neigh4.lookup(&key), reason);
}

/* The total length is not compared with the packet's: it is 0 in a GSO packet over 64 KiB, and the receiver
 * checks it. */
LS_INLINE int ls_check_ip4(struct __sk_buff *skb, const struct ls_endpoint *ep, __u32 offset)
{
	struct iphdr ip;

	if (bpf_skb_load_bytes(skb, offset, &ip, sizeof(ip)))
		return -LS_DROP_MALFORMED;
	if (ip.version != 4 || ip.ihl < 5 || offset + ip.ihl * 4 > skb->len)
		return -LS_DROP_MALFORMED;
	if (!ip.saddr)
		return LS_KERNEL; /* DHCP and IGMP before there is an address */
	return ls_check_own_ip4(ep, ip.saddr, LS_DROP_SPOOFED_IP4);
}

/* Returns 0, or a drop reason negated. */
LS_INLINE int ls_load_arp(struct __sk_buff *skb, __u32 offset, struct ls_arp *arp)
{
	if (bpf_skb_load_bytes(skb, offset, arp, sizeof(*arp)))
		return -LS_DROP_MALFORMED;
	if (arp->htype_be != bpf_htons(LS_ARP_HTYPE_ETHERNET) || arp->ptype_be != bpf_htons(ETH_P_IP) ||
	    arp->hlen != ETH_ALEN || arp->plen != sizeof(arp->spa))
		return -LS_DROP_MALFORMED;
	return 0;
}

/* Turns an untagged request into the answer that the owner of tpa would give to the one that asked, whose MAC is
 * `asker`. Returns 0 if there is no such neighbour to answer for. */
LS_INLINE int ls_answer_arp(struct __sk_buff *skb, __u32 segment, const __u8 *asker, const struct ls_arp *request)
{
	struct ls_neigh4_key key = { .segment = segment };
	const struct ls_neighbour *owner;
	struct ls_arp_frame reply = {};

	__builtin_memcpy(&key.ip4, request->tpa, sizeof(key.ip4));
	owner = neigh4.lookup(&key);
	if (!owner || (owner->flags & LS_NEIGH_SILENT) || ls_mac_equal(owner->mac, asker)) {
		LS_TELL(NOT_ANSWERED, 0);
		return 0;
	}
	LS_TELL(ANSWERED, 0);
	__builtin_memcpy(reply.eth.h_dest, asker, ETH_ALEN);
	__builtin_memcpy(reply.eth.h_source, owner->mac, ETH_ALEN);
	reply.eth.h_proto = bpf_htons(ETH_P_ARP);
	reply.arp = *request;
	reply.arp.op_be = bpf_htons(LS_ARP_REPLY);
	__builtin_memcpy(reply.arp.sha, owner->mac, ETH_ALEN);
	__builtin_memcpy(reply.arp.spa, request->tpa, sizeof(reply.arp.spa));
	__builtin_memcpy(reply.arp.tha, request->sha, ETH_ALEN);
	__builtin_memcpy(reply.arp.tpa, request->spa, sizeof(reply.arp.tpa));
	/* Not by direct writes: a program with one of those copies every cloned packet (all of TCP's) first. */
	return !bpf_skb_store_bytes(skb, 0, &reply, sizeof(reply), BPF_F_RECOMPUTE_CSUM);
}

/* Whether a broadcast packet may be answered for another. One from 0.0.0.0 asks whether an address is free (RFC 5227),
 * so all must see it. A unicast request asks whether a neighbour is still there (RFC 1122, 2.3.2.1), so only the
 * neighbour answers it. */
LS_INLINE int ls_is_arp_question(const struct ls_arp *arp)
{
	__be32 spa, tpa;

	__builtin_memcpy(&spa, arp->spa, sizeof(spa));
	__builtin_memcpy(&tpa, arp->tpa, sizeof(tpa));
	return arp->op_be == bpf_htons(LS_ARP_REQUEST) && spa && spa != tpa;
}

LS_INLINE int ls_check_arp(struct __sk_buff *skb, const struct ls_endpoint *ep, const struct ls_l3 *l3,
			   int may_answer, struct ls_fdb *to)
{
	struct ls_arp arp;
	__be32 spa;
	int verdict = ls_load_arp(skb, l3->offset, &arp);

	if (verdict < 0)
		return verdict;
	__builtin_memcpy(&spa, arp.spa, sizeof(spa));
	if (!ls_mac_copy_equal(arp.sha, ep->mac))
		return -LS_DROP_SPOOFED_ARP;
	if (!spa)
		return LS_KERNEL;
	verdict = ls_check_own_ip4(ep, spa, LS_DROP_SPOOFED_ARP);
	if (verdict != LS_FORWARD || !may_answer || !ls_is_arp_question(&arp))
		return verdict;
	if (!ls_answer_arp(skb, ep->segment, ep->mac, &arp))
		return LS_KERNEL;
	to->ifindex = skb->ifindex;
	to->slot = ep->slot;
	return LS_PEER;
}

#endif
/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * IPv6 of an endpoint: is the sender who it must be, and what stands behind the extension headers. Neighbour
 * discovery is looked at in nd.h.
 */
#ifndef LINKSPAN_IPV6_H
#define LINKSPAN_IPV6_H

#include <uapi/linux/icmpv6.h>
#include <uapi/linux/in.h>
#include <uapi/linux/ipv6.h>
/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * Neighbour discovery (RFC 4861) of an endpoint: does it speak for itself alone, and can a solicitation be
 * answered here.
 */
#ifndef LINKSPAN_ND_H
#define LINKSPAN_ND_H

#include <uapi/linux/icmpv6.h>
#include <uapi/linux/in.h>
#include <uapi/linux/ipv6.h>

/* Options that are looked through: a router advertisement with a dozen prefixes has fewer. */
#define LS_ND_OPT_DEPTH 16

enum ls_nd_type {
	LS_ND_ROUTER_SOLICIT = 133,
	LS_ND_ROUTER_ADVERT = 134,
	LS_ND_SOLICIT = 135,
	LS_ND_ADVERT = 136,
};

enum ls_nd_opt_type {
	LS_ND_OPT_SOURCE_MAC = 1, /* SLLA */
	LS_ND_OPT_TARGET_MAC = 2, /* TLLA */
};

#define LS_ND_HOP_LIMIT 255 /* shows that no router has forwarded the message */

/* Flags of an advertisement, in the first byte behind the checksum. */
#define LS_ND_ADVERT_ROUTER 0x80
#define LS_ND_ADVERT_SOLICITED 0x40
#define LS_ND_ADVERT_OVERRIDE 0x20

struct ls_icmp6 {
	__u8 type;
	__u8 code;
	__be16 checksum_be;
};

/* The header behind IPv6 and its extension headers. */
struct ls_upper {
	__u32 offset; /* from the start of the Ethernet header */
	__u8 proto;
	__u8 is_fragment; /* the first of several: the message goes on elsewhere */
	struct ls_icmp6 icmp6;
};

struct ls_nd_opt {
	__u8 type;
	__u8 len; /* in 8 bytes */
	__u8 mac[ETH_ALEN];
};

/* Neighbour solicitation or advertisement with its one option: the same length, so one turns into the other. */
struct ls_nd_message {
	struct ls_icmp6 icmp6;
	__u8 flags;
	__u8 reserved[3];
	struct in6_addr target;
	struct ls_nd_opt opt;
};

struct ls_nd_frame {
	struct ethhdr eth;
	struct ipv6hdr ip6;
	struct ls_nd_message nd;
} __attribute__((packed));

/* RFC 8200, 8.1. */
struct ls_ip6_pseudo {
	struct in6_addr saddr;
	struct in6_addr daddr;
	__be32 length_be;
	__u8 zero[3];
	__u8 next_header;
};

LS_INLINE int ls_ip6_equal(const void *a, const void *b)
{
	return ((ls_load64(a) ^ ls_load64(b)) | (ls_load64(a + 8) ^ ls_load64(b + 8))) == 0;
}

LS_INLINE int ls_ip6_is_zero(const void *ip6)
{
	return (ls_load64(ip6) | ls_load64(ip6 + 8)) == 0;
}

/* Never true of ::, which stands for "none" in the endpoint. */
LS_INLINE int ls_is_own_ip6(const struct ls_endpoint *ep, const void *ip6)
{
	return !ls_ip6_is_zero(ip6) && (ls_ip6_equal(ip6, ep->ip6) || ls_ip6_equal(ip6, ep->ip6_ll));
}

/* fe80::/10 (RFC 4291, 2.5.6). */
LS_INLINE int ls_is_link_local6(const void *ip6)
{
	return (ls_load16(ip6) & bpf_htons(0xffc0)) == bpf_htons(0xfe80);
}

/* Whether the endpoint may send from the address, as ls_check_owner() says it. */
LS_INLINE int ls_check_own_ip6(const struct ls_endpoint *ep, const struct in6_addr *ip6, int reason)
{
	struct ls_neigh6_key key = { .segment = ep->segment };

	if (ls_is_own_ip6(ep, ip6))
		return LS_FORWARD;
	if (!ls_is_link_local6(ip6))
		return -reason;
	__builtin_memcpy(key.ip6, ip6, sizeof(key.ip6));
	return ls_check_owner(ep, neigh6.lookup(&key), reason);
}

/* Redirects (137) are left out: their target option is another's by right, and their IPv6 source is checked. */
LS_INLINE int ls_is_nd(__u8 icmp6_type)
{
	return icmp6_type >= LS_ND_ROUTER_SOLICIT && icmp6_type <= LS_ND_ADVERT;
}

/* Turns the solicitation into the advertisement that the owner of the target would send to the one that asked, whose
 * MAC is `asker`. Returns 0 if there is no such neighbour to answer for. */
LS_INLINE int ls_answer_nd(struct __sk_buff *skb, __u32 segment, const __u8 *asker, const struct ipv6hdr *request,
			   const struct in6_addr *target)
{
	struct ls_neigh6_key key = { .segment = segment };
	const struct ls_neighbour *owner;
	struct ls_ip6_pseudo pseudo = {};
	struct ls_nd_frame reply = {};
	__s64 sum;

	__builtin_memcpy(key.ip6, target, sizeof(key.ip6));
	owner = neigh6.lookup(&key);
	if (!owner || (owner->flags & LS_NEIGH_SILENT) || ls_mac_equal(owner->mac, asker)) {
		LS_TELL(NOT_ANSWERED, 0);
		return 0;
	}
	LS_TELL(ANSWERED, 0);
	__builtin_memcpy(reply.eth.h_dest, asker, ETH_ALEN);
	__builtin_memcpy(reply.eth.h_source, owner->mac, ETH_ALEN);
	reply.eth.h_proto = bpf_htons(ETH_P_IPV6);
	reply.ip6.version = 6;
	reply.ip6.payload_len = bpf_htons(sizeof(reply.nd));
	reply.ip6.nexthdr = IPPROTO_ICMPV6;
	reply.ip6.hop_limit = LS_ND_HOP_LIMIT;
	reply.ip6.saddr = *target;
	reply.ip6.daddr = request->saddr;
	reply.nd.icmp6.type = LS_ND_ADVERT;
	reply.nd.flags = LS_ND_ADVERT_SOLICITED | LS_ND_ADVERT_OVERRIDE;
	if (owner->flags & LS_NEIGH_ROUTER)
		reply.nd.flags |= LS_ND_ADVERT_ROUTER;
	reply.nd.target = *target;
	reply.nd.opt.type = LS_ND_OPT_TARGET_MAC;
	reply.nd.opt.len = 1;
	__builtin_memcpy(reply.nd.opt.mac, owner->mac, ETH_ALEN);

	pseudo.saddr = *target;
	pseudo.daddr = request->saddr;
	pseudo.length_be = bpf_htonl(sizeof(reply.nd));
	pseudo.next_header = IPPROTO_ICMPV6;
	sum = bpf_csum_diff(0, 0, (__be32 *)&pseudo, sizeof(pseudo), 0);
	sum = bpf_csum_diff(0, 0, (__be32 *)&reply.nd, sizeof(reply.nd), sum);
	sum = (sum & 0xffff) + ((sum >> 16) & 0xffff);
	sum = (sum & 0xffff) + (sum >> 16);
	reply.nd.icmp6.checksum_be = ~sum;

	return !bpf_skb_store_bytes(skb, 0, &reply, sizeof(reply), BPF_F_RECOMPUTE_CSUM);
}

/* Walks the options between *offset and end: each link-layer address must be the endpoint's own. Returns the number
 * of options, or a drop reason negated; *last_type is the type of the last one. */
LS_INLINE int ls_check_nd_options(struct __sk_buff *skb, const struct ls_endpoint *ep, __u32 offset, __u32 end,
				  __u8 *last_type)
{
	struct ls_nd_opt opt;
	int count;

#pragma clang loop unroll(disable)
	for (count = 0; count <= LS_ND_OPT_DEPTH; count++) {
		if (offset == end)
			return count;
		if (count == LS_ND_OPT_DEPTH)
			break;
		if (bpf_skb_load_bytes(skb, offset, &opt, sizeof(opt)) || !opt.len)
			return -LS_DROP_MALFORMED;
		offset += opt.len * 8;
		if (offset > end)
			return -LS_DROP_MALFORMED;
		if ((opt.type == LS_ND_OPT_SOURCE_MAC || opt.type == LS_ND_OPT_TARGET_MAC) &&
		    !ls_mac_copy_equal(opt.mac, ep->mac))
			return -LS_DROP_SPOOFED_ND;
		*last_type = opt.type;
	}
	return -LS_DROP_TOO_DEEP;
}

/* Whether a multicast packet may be answered for another: a solicitation in the usual form, with one option of type
 * `option`, and not from ::. As with ARP, one from :: looks for duplicates (RFC 4862, 5.4) and a unicast one probes a
 * neighbour; both are for the neighbours themselves. */
LS_INLINE int ls_is_nd_question(const struct ipv6hdr *ip6, const struct ls_icmp6 *icmp6, __u8 option)
{
	return icmp6->type == LS_ND_SOLICIT && icmp6->code == 0 && ip6->nexthdr == IPPROTO_ICMPV6 &&
	       ip6->hop_limit == LS_ND_HOP_LIMIT && ip6->payload_len == bpf_htons(sizeof(struct ls_nd_message)) &&
	       option == LS_ND_OPT_SOURCE_MAC && ip6->daddr.in6_u.u6_addr8[0] == 0xff;
}

/* `source` is what ls_check_own_ip6() says of the sender's address, LS_KERNEL of the unspecified one. */
LS_INLINE int ls_check_nd(struct __sk_buff *skb, const struct ls_endpoint *ep, const struct ls_l3 *l3,
			  const struct ipv6hdr *ip6, const struct ls_upper *upper, int source, int may_answer,
			  struct ls_fdb *to)
{
	__u32 end = l3->offset + sizeof(*ip6) + bpf_ntohs(ip6->payload_len);
	__u32 options = upper->offset + 8; /* of a router solicitation */
	struct in6_addr target __attribute__((aligned(8))) = {};
	int count, owner;
	__u8 last_type = 0;

	/* Receivers ignore fragmented messages (RFC 6980); their options can't be seen here. */
	if (upper->is_fragment || end > skb->len)
		return -LS_DROP_MALFORMED;
	if (upper->icmp6.type == LS_ND_ROUTER_ADVERT)
		options += 8;
	if (upper->icmp6.type == LS_ND_SOLICIT || upper->icmp6.type == LS_ND_ADVERT) {
		if (bpf_skb_load_bytes(skb, options, &target, sizeof(target)))
			return -LS_DROP_MALFORMED;
		options += sizeof(target);
	}
	if (options > end)
		return -LS_DROP_MALFORMED;
	if (upper->icmp6.type == LS_ND_ADVERT) {
		owner = ls_check_own_ip6(ep, &target, LS_DROP_SPOOFED_ND);
		if (owner < 0)
			return owner;
		if (owner == LS_KERNEL)
			source = LS_KERNEL;
	}
	count = ls_check_nd_options(skb, ep, options, end, &last_type);
	if (count < 0)
		return count;
	if (source == LS_KERNEL)
		return LS_KERNEL;
	if (!may_answer || !ls_is_nd_question(ip6, &upper->icmp6, last_type) || ls_is_own_ip6(ep, &target))
		return LS_FORWARD;
	if (!ls_answer_nd(skb, ep->segment, ep->mac, ip6, &target))
		return LS_KERNEL;
	to->ifindex = skb->ifindex;
	to->slot = ep->slot;
	return LS_PEER;
}

#endif

/* Extension headers that are looked through; RFC 8200, 4.1 recommends no chain of more than seven. */
#define LS_IP6_EXT_DEPTH 8

/* Extension headers (RFC 8200, 4; IANA's registry) that the UAPI headers don't name. */
#define LS_IPPROTO_HIP 139
#define LS_IPPROTO_SHIM6 140

/* Parts of frag_off. */
#define LS_IP6_FRAG_OFFSET 0xfff8
#define LS_IP6_FRAG_MORE 0x0001

struct ls_ip6_ext {
	__u8 next_header;
	__u8 len; /* in 8 bytes beyond the first 8; of AH: in 4 bytes beyond the first 8 */
	__be16 frag_off_be;
	__be32 frag_id_be;
};

LS_INLINE int ls_is_ip6_ext(__u8 proto)
{
	const __u64 low = 1ULL << IPPROTO_HOPOPTS | 1ULL << IPPROTO_ROUTING | 1ULL << IPPROTO_FRAGMENT |
			  1ULL << IPPROTO_AH | 1ULL << IPPROTO_DSTOPTS;

	if (proto < 64)
		return (low >> proto) & 1;
	return proto == IPPROTO_MH || proto == LS_IPPROTO_HIP || proto == LS_IPPROTO_SHIM6;
}

/* Walks to the upper-layer header. Returns 0, or a drop reason negated. upper->proto is IPPROTO_NONE where none
 * can be seen: in fragments but the first. A first fragment must hold the whole chain (RFC 7112). */
LS_INLINE int ls_skip_ip6_ext(struct __sk_buff *skb, struct ls_upper *upper)
{
	struct ls_ip6_ext ext;
	__u32 len;

	/* Not as a loop: Linux 6.1's verifier refuses its layout ("back-edge from insn"). */
#pragma unroll
	for (int i = 0; i <= LS_IP6_EXT_DEPTH; i++) {
		if (!ls_is_ip6_ext(upper->proto))
			return 0;
		if (i == LS_IP6_EXT_DEPTH)
			break;
		if (bpf_skb_load_bytes(skb, upper->offset, &ext, sizeof(ext)))
			return -LS_DROP_MALFORMED;
		len = 8 + ext.len * 8;
		if (upper->proto == IPPROTO_AH)
			len = 8 + ext.len * 4;
		if (upper->proto == IPPROTO_FRAGMENT) {
			len = 8;
			if (ext.frag_off_be & bpf_htons(LS_IP6_FRAG_OFFSET)) {
				upper->proto = IPPROTO_NONE;
				return 0;
			}
			upper->is_fragment |= (ext.frag_off_be & bpf_htons(LS_IP6_FRAG_MORE)) != 0;
		}
		upper->offset += len;
		if (upper->offset > skb->len)
			return -LS_DROP_MALFORMED;
		upper->proto = ext.next_header;
	}
	return -LS_DROP_TOO_DEEP;
}

LS_INLINE int ls_check_ip6(struct __sk_buff *skb, const struct ls_endpoint *ep, const struct ls_l3 *l3,
			   int may_answer, struct ls_fdb *to)
{
	struct ls_upper upper = {};
	struct ipv6hdr ip6 __attribute__((aligned(8)));
	int source, verdict;

	if (bpf_skb_load_bytes(skb, l3->offset, &ip6, sizeof(ip6)) || ip6.version != 6)
		return -LS_DROP_MALFORMED;
	upper.proto = ip6.nexthdr;
	upper.offset = l3->offset + sizeof(ip6);
	verdict = ls_skip_ip6_ext(skb, &upper);
	if (verdict < 0)
		return verdict;
	/* From :: before there is an address: multicast listener reports, and who looks for duplicates. */
	source = ls_ip6_is_zero(&ip6.saddr) ? LS_KERNEL : ls_check_own_ip6(ep, &ip6.saddr, LS_DROP_SPOOFED_IP6);
	LS_HIDE(source);
	if (upper.proto == IPPROTO_ICMPV6) {
		if (bpf_skb_load_bytes(skb, upper.offset, &upper.icmp6, sizeof(upper.icmp6)))
			return -LS_DROP_MALFORMED;
		if (ls_is_nd(upper.icmp6.type)) {
			if (source < 0)
				return -LS_DROP_SPOOFED_ND;
			return ls_check_nd(skb, ep, l3, &ip6, &upper, source, may_answer, to);
		}
	}
	return source;
}

#endif

/* The short line: true if the packet is surely an untagged IPv4 or IPv6 packet with nothing to object to. It reads
 * few words and calls nothing; what it is not sure of, ls_check() looks at in full. */
LS_INLINE int ls_is_plain(const struct __sk_buff *skb, const struct ls_endpoint *ep)
{
	const void *data_end = (void *)(long)skb->data_end;
	const struct ethhdr *eth = (void *)(long)skb->data;

	if ((void *)(eth + 1) + sizeof(struct iphdr) > data_end || skb->vlan_present)
		return 0;
	if (likely(eth->h_proto == bpf_htons(ETH_P_IP))) {
		const struct iphdr *ip = (void *)(eth + 1);

		return *(const __u8 *)ip == LS_IP4_NO_OPTIONS && ip->saddr == ep->ip4 && ip->saddr;
	}
	if (eth->h_proto == bpf_htons(ETH_P_IPV6)) {
		const struct ipv6hdr *ip6 = (void *)(eth + 1);

		if ((void *)(ip6 + 1) > data_end)
			return 0;
		return (*(const __u8 *)ip6 >> 4) == 6 &&
		       (ip6->nexthdr == IPPROTO_TCP || ip6->nexthdr == IPPROTO_UDP) && ls_is_own_ip6(ep, &ip6->saddr);
	}
	return 0;
}

/* The long line: every check, by copies, so that headers may lie anywhere in the packet. With `answers`, a question to
 * all about a known neighbour becomes its answer (LS_PEER, and `to` the endpoint that asked). */
LS_INLINE int ls_check(struct __sk_buff *skb, const struct ls_endpoint *ep, const struct ethhdr *eth, int answers,
		       struct ls_l3 *l3, struct ls_fdb *to)
{
	int is_broadcast = ls_is_broadcast(eth->h_dest);
	int is_group = ls_is_group(eth->h_dest);
	int verdict = ls_skip_tags(skb, eth->h_proto, l3);

	if (verdict < 0)
		return verdict;
	if (l3->proto_be == bpf_htons(ETH_P_IP))
		verdict = ls_check_ip4(skb, ep, l3->offset);
	else if (l3->proto_be == bpf_htons(ETH_P_IPV6))
		verdict = ls_check_ip6(skb, ep, l3, answers && is_group && !l3->tags, to);
	else if (l3->proto_be == bpf_htons(ETH_P_ARP))
		verdict = ls_check_arp(skb, ep, l3, answers && is_broadcast && !l3->tags, to);
	else
		verdict = LS_KERNEL;
	if (verdict == LS_FORWARD && l3->tags)
		verdict = LS_KERNEL;
	return verdict;
}

#endif
/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * Whether a packet is short enough for the endpoint that the fast path takes it to.
 */
#ifndef LINKSPAN_FITS_H
#define LINKSPAN_FITS_H

#include <uapi/linux/if_ether.h>

/* Not checked against the receiver's MTU: no device that carries IPv6 has a smaller one (RFC 8200, 5). To an IPv4-only
 * device with a smaller one a longer packet gets through where a bridge would drop it; the receiver takes it. */
#define LS_FITS_ALWAYS (1280 + ETH_HLEN)

/* A bridge refuses what is longer than the port's MTU, and redirect_peer does not look (since Linux 5.12). GSO
 * packets are cut to fit by whoever sends them on. `overhead` bytes will be taken off the packet. */
LS_INLINE int ls_fits(struct __sk_buff *skb, __u32 ifindex, __u32 overhead)
{
	__u32 mtu = 0;

	return likely(skb->len <= LS_FITS_ALWAYS + overhead) || skb->gso_size ||
	       bpf_check_mtu(skb, ifindex, &mtu, -(__s32)overhead, 0) == 0;
}

#endif
/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * The flow cache: what the maps said of the last pairs of sender and destination MAC, in one lookup that the JIT
 * inlines instead of two hash lookups. An entry holds as long as the epoch that it was made in.
 */
#ifndef LINKSPAN_FLOW_H
#define LINKSPAN_FLOW_H


/* Multipliers of common hash functions (Knuth's golden ratio, murmur3's first finaliser). Sums would not do: ifindexes
 * and MACs count up together, and both directions of a flow would meet. */
LS_INLINE __u32 ls_flow_index(__u32 sender, const __u8 *mac)
{
	return (((sender * 0x9e3779b1) ^ ls_load32(mac + 2)) * 0x85ebca6b) >> (32 - LS_FLOW_BITS);
}

/* The only place for the flow of a sender's packet, whoever's flow is there now. `sender` is a number that tells senders
 * apart. */
LS_INLINE struct ls_flow *ls_flow_place(const struct __sk_buff *skb, __u32 sender)
{
	const struct ethhdr *eth = (void *)(long)skb->data;
	__u32 index;

	if ((void *)(eth + 1) > (void *)(long)skb->data_end)
		return 0;
	index = ls_flow_index(sender, eth->h_dest);
	return flows.lookup(&index);
}

/* The epoch has to be read before the maps are: an entry made while they change is then outdated from the start. x86-64
 * keeps loads in order; a machine that doesn't would need a read barrier between, which BPF programs don't have. */
LS_INLINE __u64 ls_flow_epoch(void)
{
#ifdef LS_TRACE
	return bpf_ktime_get_ns(); /* a new one for each packet: all is looked up, and told */
#else
	__u32 first = 0;
	const __u64 *now = epoch.lookup(&first);

	return now ? *now : 0;
#endif
}

/* True if the place holds this packet's flow. */
LS_INLINE int ls_flow_is(const struct ls_flow *flow, const struct __sk_buff *skb, __u32 ifindex, __u64 now)
{
	const struct ethhdr *eth = (void *)(long)skb->data;

	if ((void *)(eth + 1) > (void *)(long)skb->data_end)
		return 0;
	return flow->ifindex == ifindex && flow->epoch == now && ls_mac_equal(eth->h_dest, flow->mac) &&
	       ls_mac_equal(eth->h_source, flow->endpoint.mac);
}

/* Nothing else runs on this CPU's copy meanwhile: see ep_counters. */
LS_INLINE void ls_flow_keep(struct ls_flow *flow, __u32 ifindex, __u64 now, const __u8 *mac,
			    const struct ls_endpoint *ep, const struct ls_fdb *to)
{
	flow->ifindex = ifindex;
	flow->epoch = now;
	__builtin_memcpy(flow->mac, mac, ETH_ALEN);
	flow->to = *to;
	flow->endpoint = *ep;
	flow->peer.vni = 0;
}

#endif
/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * The way of a checked packet to an endpoint of another host: the outer headers in front of it, and out; or without them
 * where that host takes it so.
 */
#ifndef LINKSPAN_REMOTE_H
#define LINKSPAN_REMOTE_H

/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * Packets between endpoints of two hosts on one layer 2 segment, without VXLAN: on the way they have the MACs of the two
 * hosts, and are the same from the network header on. Only what is from an endpoint's own address for another's goes so,
 * because the addresses alone say which network it is of.
 */
#ifndef LINKSPAN_DIRECT_H
#define LINKSPAN_DIRECT_H

#include <uapi/linux/ip.h>
#include <uapi/linux/ipv6.h>

/* An IPv4 address as ls_node has it. */
LS_INLINE void ls_map_ip4(void *address, __be32 ip4)
{
	__u64 *words = address;

	words[0] = 0;
	words[1] = (__u64)ip4 << 32 | bpf_htonl(0xffff);
}

/* Has a flow that is looked up take VXLAN as long as the peer's host may not know the sender, which is always where the
 * sender takes no direct packets itself. */
LS_INLINE void ls_wait_for_direct(struct ls_flow *flow)
{
	struct ls_direct_key own __attribute__((aligned(8)));
	const struct ls_direct *sender;

	if (likely(!(flow->peer.flags & LS_PEER_DIRECT)))
		return;
	if (flow->endpoint.ip4)
		ls_map_ip4(&own, flow->endpoint.ip4);
	else
		__builtin_memcpy(&own, flow->endpoint.ip6, sizeof(own));
	sender = direct.lookup(&own);
	if (sender && sender->from_ns <= bpf_ktime_get_ns())
		return;
	flow->peer.flags = 0;
	if (sender)
		flow->epoch = 0; /* never now: looked up again each time */
}

/* The Ethernet header and an IPv4 header's length have been found to be there. */
LS_INLINE int ls_is_direct(const struct __sk_buff *skb, const struct ls_flow *flow)
{
	const void *data_end = (void *)(long)skb->data_end;
	const struct ethhdr *eth = (void *)(long)skb->data;
	const struct iphdr *ip = (void *)(eth + 1);
	const struct ipv6hdr *ip6 = (void *)(eth + 1);

	if (!(flow->peer.flags & LS_PEER_DIRECT) || (void *)(ip + 1) > data_end)
		return 0;
	if (eth->h_proto == bpf_htons(ETH_P_IP))
		return ip->daddr && ip->daddr == flow->peer.ip4 && ip->saddr == flow->endpoint.ip4;
	return (void *)(ip6 + 1) <= data_end && !ls_ip6_is_zero(flow->peer.ip6) &&
	       ls_ip6_equal(&ip6->daddr, flow->peer.ip6) && ls_ip6_equal(&ip6->saddr, flow->endpoint.ip6);
}

LS_INLINE int ls_send_direct(struct __sk_buff *skb, const struct ls_node *node)
{
	struct {
		__u8 to[ETH_ALEN], from[ETH_ALEN];
	} macs;

	__builtin_memcpy(macs.to, node->mac, ETH_ALEN);
	__builtin_memcpy(macs.from, node->local_mac, ETH_ALEN);
	if (bpf_skb_store_bytes(skb, 0, &macs, sizeof(macs), 0))
		return TC_ACT_SHOT; /* out of memory */
	return bpf_redirect(node->ifindex, 0);
}

#endif
/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * VXLAN between hosts (RFC 7348): the outer headers, pushed and popped around a packet that keeps its segmentation (GSO)
 * and checksum offloads.
 */
#ifndef LINKSPAN_TUNNEL_H
#define LINKSPAN_TUNNEL_H

#include <uapi/linux/in.h>
#include <uapi/linux/ip.h>
#include <uapi/linux/ipv6.h>
#include <uapi/linux/tcp.h>
#include <uapi/linux/udp.h>

#define LS_VXLAN_PORT 4789
#define LS_VXLAN_HAS_VNI 0x08000000 /* the flags word, with the I flag alone */

#define LS_AF_INET 2
#define LS_AF_INET6 10

#define LS_TTL 64
#define LS_ECN_MASK 3
#define LS_ECN_CE 3
#define LS_PORTS_BITS 14 /* of source ports: 49152 to 65535 */

struct ls_vxlan {
	__be32 flags_be;
	__be32 vni_be; /* in the upper 24 bits */
};

/* What stands between the outer Ethernet header and the inner network header. */
struct ls_tunnel {
	struct udphdr udp;
	struct ls_vxlan vxlan;
	struct ethhdr eth;
} __attribute__((packed));
struct ls_tunnel4 {
	struct iphdr ip;
	struct ls_tunnel in;
} __attribute__((packed));
struct ls_tunnel6 {
	struct ipv6hdr ip6;
	struct ls_tunnel in;
} __attribute__((packed));

/* The families of the addresses in a node. */
LS_INLINE int ls_is_mapped(const __u8 *address)
{
	return ls_load64(address) == 0 && ls_load32(address + 8) == bpf_htonl(0xffff);
}

/* The byte that both versions of IP have their DSCP and ECN in. */
LS_INLINE __u8 ls_traffic_class(const void *ip, __be16 proto_be)
{
	return proto_be == bpf_htons(ETH_P_IP) ? *(const __u8 *)(ip + 1) : bpf_ntohs(ls_load16(ip)) >> 4;
}

/* RFC 1071. Words in memory order, so the sum is too. */
LS_INLINE __u16 ls_fold(__u32 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return ~sum;
}

#endif

/* bcc's helpers.h leaves out plen. */
static int (*ls_redirect_neigh)(__u32 ifindex, struct bpf_redir_neigh *params, int plen, __u64 flags) =
	(void *)BPF_FUNC_redirect_neigh;

/* What is read of the packet before it changes. */
struct ls_inner {
	__u32 len;  /* with its Ethernet header */
	__u32 hash; /* the same for all packets of a flow */
	__be16 proto_be;
	__u8 class; /* DSCP and ECN */
};

/* Whether the packet, or each of its segments, fits the way with `overhead` bytes more. A packet that does not is the
 * kernel's, which tells the sender (RFC 1191, RFC 8201). */
LS_INLINE int ls_fits_way(const struct __sk_buff *skb, const struct ethhdr *eth, const struct ls_node *node,
			  __u32 overhead)
{
	__u32 header;

	if (skb->len - ETH_HLEN + overhead <= node->mtu)
		return 1;
	if (!skb->gso_size || skb->len + overhead > 0xffff)
		return 0;
	header = ls_l4_headers(skb, eth);
	return header && header + skb->gso_size + overhead <= node->mtu;
}

LS_INLINE void ls_fill_tunnel(struct ls_tunnel *in, const struct ls_inner *inner, const struct ls_flow *flow)
{
	in->udp.source = bpf_htons(0xc000 | inner->hash >> (32 - LS_PORTS_BITS));
	in->udp.dest = bpf_htons(LS_VXLAN_PORT);
	in->udp.len = bpf_htons(inner->len - ETH_HLEN + sizeof(*in));
	in->udp.check = 0; /* RFC 7348, 4; IPv6: RFC 6935 */
	in->vxlan.flags_be = bpf_htonl(LS_VXLAN_HAS_VNI);
	in->vxlan.vni_be = bpf_htonl(flow->peer.vni << 8);
	__builtin_memcpy(in->eth.h_dest, flow->mac, ETH_ALEN);
	__builtin_memcpy(in->eth.h_source, flow->endpoint.mac, ETH_ALEN);
	in->eth.h_proto = inner->proto_be;
}

#define LS_PUSH_FLAGS \
	(BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_ENCAP_L4_UDP | BPF_F_ADJ_ROOM_ENCAP_L2(ETH_HLEN) | \
	 BPF_F_ADJ_ROOM_ENCAP_L2_ETH)

/* These two return 0, and have changed nothing, if the kernel does not do it with such a packet; or else a TC_ACT_*. */
LS_INLINE int ls_push4(struct __sk_buff *skb, const struct ls_inner *inner, const struct ls_flow *flow,
		       const struct ls_node *node, __u16 id)
{
	struct bpf_redir_neigh next = { .nh_family = LS_AF_INET, .ipv4_nh = ls_load32(node->next_hop + 12) };
	struct ls_tunnel4 outer __attribute__((aligned(8))) = {}; /* else written byte by byte: it is packed */
	__u32 local = ls_load32(node->local + 12), remote = ls_load32(node->remote + 12);

	if (bpf_skb_adjust_room(skb, sizeof(outer), BPF_ADJ_ROOM_MAC, LS_PUSH_FLAGS | BPF_F_ADJ_ROOM_ENCAP_L3_IPV4))
		return 0;
	outer.ip.version = 4;
	outer.ip.ihl = sizeof(outer.ip) / 4;
	outer.ip.tos = inner->class;
	outer.ip.tot_len = bpf_htons(inner->len - ETH_HLEN + sizeof(outer));
	outer.ip.id = id;
	outer.ip.ttl = LS_TTL;
	outer.ip.protocol = IPPROTO_UDP;
	outer.ip.saddr = local;
	outer.ip.daddr = remote;
	outer.ip.check = ls_fold(bpf_htons(0x4500 | inner->class) + outer.ip.tot_len + id +
				 bpf_htons(LS_TTL << 8 | IPPROTO_UDP) + (local & 0xffff) + (local >> 16) +
				 (remote & 0xffff) + (remote >> 16));
	ls_fill_tunnel(&outer.in, inner, flow);
	if (bpf_skb_store_bytes(skb, ETH_HLEN, &outer, sizeof(outer), 0))
		return TC_ACT_SHOT; /* out of memory */
	return ls_redirect_neigh(node->ifindex, &next, sizeof(next), 0);
}

LS_INLINE int ls_push6(struct __sk_buff *skb, const struct ls_inner *inner, const struct ls_flow *flow,
		       const struct ls_node *node)
{
	struct bpf_redir_neigh next = { .nh_family = LS_AF_INET6 };
	struct ls_tunnel6 outer __attribute__((aligned(8))) = {};

	if (bpf_skb_adjust_room(skb, sizeof(outer), BPF_ADJ_ROOM_MAC, LS_PUSH_FLAGS | BPF_F_ADJ_ROOM_ENCAP_L3_IPV6))
		return 0;
	*(__be32 *)&outer.ip6 = bpf_htonl(6 << 28 | inner->class << 20);
	outer.ip6.payload_len = bpf_htons(inner->len - ETH_HLEN + sizeof(outer.in));
	outer.ip6.nexthdr = IPPROTO_UDP;
	outer.ip6.hop_limit = LS_TTL;
	__builtin_memcpy(&outer.ip6.saddr, node->local, sizeof(outer.ip6.saddr));
	__builtin_memcpy(&outer.ip6.daddr, node->remote, sizeof(outer.ip6.daddr));
	ls_fill_tunnel(&outer.in, inner, flow);
	if (bpf_skb_store_bytes(skb, ETH_HLEN, &outer, sizeof(outer), 0))
		return TC_ACT_SHOT; /* out of memory */
	__builtin_memcpy(next.ipv6_nh, node->next_hop, sizeof(next.ipv6_nh));
	return ls_redirect_neigh(node->ifindex, &next, sizeof(next), 0);
}

/* Sends a packet of the flow to the peer's node; TC_ACT_*, or 0 if it is to be left to the kernel, unchanged. */
LS_INLINE int ls_send_remote(struct __sk_buff *skb, struct ls_flow *flow)
{
	const struct ethhdr *eth = (void *)(long)skb->data;
	__u32 number = flow->peer.node;
	const struct ls_node *node = nodes.lookup(&number);
	struct ls_inner inner;
	int is_ip4;

	if (!node || !node->ifindex || (void *)(eth + 1) + sizeof(struct iphdr) > (void *)(long)skb->data_end) {
		LS_TELL(NO_WAY, number);
		return 0;
	}
	inner.proto_be = eth->h_proto;
	if (inner.proto_be != bpf_htons(ETH_P_IP) && inner.proto_be != bpf_htons(ETH_P_IPV6))
		return 0;
	if (ls_is_direct(skb, flow) && ls_fits_way(skb, eth, node, 0)) {
		LS_TELL(DIRECT, number);
		return ls_send_direct(skb, node);
	}
	is_ip4 = ls_is_mapped(node->remote);
	if (!ls_fits_way(skb, eth, node, is_ip4 ? sizeof(struct ls_tunnel4) : sizeof(struct ls_tunnel6))) {
		LS_TELL(WAY_TOO_SMALL, node->mtu);
		return 0;
	}
	LS_TELL(VXLAN, flow->peer.vni);
	inner.len = skb->len;
	inner.class = ls_traffic_class(eth + 1, inner.proto_be);
	inner.hash = bpf_get_hash_recalc(skb);
	/* May be fragmented on its way, as the VXLAN device's packets may, and so is told from others (RFC 6864). */
	return is_ip4 ? ls_push4(skb, &inner, flow, node, flow->ip4_id++) : ls_push6(skb, &inner, flow, node);
}

/* The exit of a packet that is for a peer. */
LS_INLINE int ls_exit_remote(struct __sk_buff *skb, struct ls_flow *flow, struct ls_sampling *sample)
{
	__u64 packets = ls_wire_packets(skb), bytes = skb->len;
	struct ls_counters *counters = ep_counters.lookup(&flow->endpoint.slot);
	int action;

	ls_sent(sample, skb, flow->endpoint.slot);
	action = ls_send_remote(skb, flow);

	if (!counters)
		return action ? action : TC_ACT_UNSPEC;
	if (unlikely(!action)) {
		counters->out_slow_packets += packets;
		counters->out_slow_bytes += bytes;
		return TC_ACT_UNSPEC;
	}
	counters->out_fast_packets += packets;
	counters->out_fast_bytes += bytes;
	return action;
}

#endif

/* Where the fast path takes unicast for `mac`; ifindex 0 if it is the kernel's. */
LS_INLINE struct ls_fdb ls_destination(const struct ls_endpoint *ep, __u32 ifindex, const __u8 *mac)
{
	struct ls_fdb_key key = { .segment = ep->segment };
	struct ls_fdb nowhere = {};
	const struct ls_fdb *found;

	if (!(ep->flags & LS_EP_FAST)) {
		LS_TELL(NOT_CONNECTED, ifindex);
		return nowhere;
	}
	__builtin_memcpy(key.mac, mac, ETH_ALEN);
	found = fdb.lookup(&key);
	LS_TELL_FOUND(found && found->ifindex != ifindex, FDB, found->ifindex, NO_FDB);
	return found && found->ifindex != ifindex ? *found : nowhere;
}

/* The endpoint of another host that has `mac`; vni 0 if there is none that the fast path sends to. */
LS_INLINE struct ls_peer ls_remote(const struct ls_endpoint *ep, const __u8 *mac)
{
	struct ls_fdb_key key = { .segment = ep->segment };
	struct ls_peer nobody = {};
	const struct ls_peer *found;

	if (!(ep->flags & LS_EP_FAST) || !(ep->flags & LS_EP_OVERLAY))
		return nobody;
	__builtin_memcpy(key.mac, mac, ETH_ALEN);
	found = peers.lookup(&key);
	LS_TELL_FOUND(found, PEER, found->node, NO_PEER);
	return found ? *found : nobody;
}

LS_INLINE int ls_path(struct __sk_buff *skb, const struct ls_fdb *to, const struct ls_flow *flow)
{
	if (likely(to->ifindex)) {
		if (ls_fits(skb, to->ifindex, 0))
			return LS_PEER;
		LS_TELL(TOO_LONG, to->ifindex);
		return LS_KERNEL;
	}
	return flow && flow->peer.vni ? LS_REMOTE : LS_KERNEL;
}

/* All of it, for packets whose flow is not remembered. */
LS_INLINE int ls_judge(struct __sk_buff *skb, const struct ls_endpoint *ep, __u32 ifindex, __u64 now,
		       struct ls_flow *flow, struct ls_fdb *to)
{
	const struct ethhdr *eth = (void *)(long)skb->data;
	struct ls_l3 l3;
	int verdict;

	if ((void *)(eth + 1) > (void *)(long)skb->data_end)
		return -LS_DROP_MALFORMED;
	if (!ls_mac_equal(eth->h_source, ep->mac))
		return -LS_DROP_SPOOFED_MAC;
	if (!ls_is_plain(skb, ep)) {
		verdict = ls_check(skb, ep, eth, 1, &l3, to);
		if (verdict != LS_FORWARD)
			return verdict;
	}
	LS_TELL(SENDER, ep->slot);
	*to = ls_destination(ep, ifindex, eth->h_dest);
	if (flow)
		ls_flow_keep(flow, ifindex, now, eth->h_dest, ep, to);
	if (flow && !to->ifindex) {
		flow->peer = ls_remote(ep, eth->h_dest);
		ls_wait_for_direct(flow);
	}
	return ls_path(skb, to, flow);
}

int ls_ep_out(struct __sk_buff *skb)
{
	struct ls_sampling *sample = ls_arrived();
	__u32 ifindex = skb->ifindex;
	__u64 now = ls_flow_epoch();
	struct ls_flow *flow = ls_flow_place(skb, ifindex);
	const struct ls_endpoint *ep;
	struct ls_fdb to = {};
	int verdict;

	if (!sample)
		return TC_ACT_UNSPEC;
	if (likely(flow && ls_flow_is(flow, skb, ifindex, now) && ls_is_plain(skb, &flow->endpoint))) {
		verdict = ls_path(skb, &flow->to, flow);
		if (likely(verdict != LS_REMOTE))
			return ls_exit_out(skb, flow->endpoint.slot, verdict, &flow->to, sample);
	} else {
		ep = ep_by_if.lookup(&ifindex);
		if (!ep) {
			LS_TELL(NO_ENDPOINT, ifindex);
			return TC_ACT_UNSPEC;
		}
		verdict = ls_judge(skb, ep, ifindex, now, flow, &to);
		if (verdict != LS_REMOTE)
			return ls_exit_out(skb, ep->slot, verdict, &to, sample);
	}
	return flow ? ls_exit_remote(skb, flow, sample) : TC_ACT_UNSPEC;
}
