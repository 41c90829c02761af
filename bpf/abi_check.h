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
