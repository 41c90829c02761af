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
	LS_TOLD_FROM_PEER = 30,	    /* index into nodes, of the host that the sender is an endpoint of */
	LS_TOLD_FROM_NOBODY = 31,   /* the sender is no endpoint that is known */
	LS_TOLD_TAKER = 32,	    /* segment of the endpoint that takes it without VXLAN */
	LS_TOLD_NO_TAKER = 33,	    /* no endpoint of this host takes it without VXLAN */
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
