/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What datapath._native offers to Python besides the structs of abi.h. cffi reads this file as build_native.py
 * reads abi.h, so it holds declarations only.
 *
 * Every int function returns a result >= 0 or -errno, and may block; cffi releases
 * the GIL around each call. Sizes are bytes.
 */
#ifndef LINKSPAN_NATIVE_H
#define LINKSPAN_NATIVE_H

#include <linux/types.h>

struct bpf_map_info;
struct bpf_prog_info;
struct ls_counters;
struct ls_latency;
struct ls_latency_key;

/* bpf.c: one bpf(2) command each. Descriptors returned are close-on-exec. */
int ls_bpf_obj_get(const char *path);
int ls_bpf_obj_pin(int fd, const char *path);
int ls_bpf_is_bpffs(const char *path); /* 1: on a bpffs; 0: on another file system */
int ls_bpf_map_create(__u32 type, __u32 key_size, __u32 value_size, __u32 max_entries, __u32 flags, const char *name);
int ls_bpf_map_lookup(int fd, const void *key, void *value);
int ls_bpf_map_update(int fd, const void *key, const void *value, __u64 flags);
int ls_bpf_map_delete(int fd, const void *key);
int ls_bpf_map_next_key(int fd, const void *key, void *next_key);
int ls_bpf_map_lookup_batch(int fd, const void *in_batch, void *out_batch, void *keys, void *values, __u32 *count);
int ls_bpf_map_info(int fd, struct bpf_map_info *info);
int ls_bpf_prog_info(int fd, struct bpf_prog_info *info);
int ls_bpf_prog_load(__u32 type, const void *insns, __u32 insn_count, const char *license, const char *name,
		     __u32 log_level, char *log, __u32 log_size);
int ls_bpf_prog_test_run(int fd, const void *data_in, __u32 data_in_size, void *data_out, __u32 *data_out_size,
			 void *ctx, __u32 ctx_size, __u32 repeat, __u32 *retval, __u32 *duration_ns);
int ls_bpf_link_create(int prog_fd, __u32 ifindex, __u32 attach_type, __u32 flags);
int ls_bpf_link_update(int link_fd, int prog_fd);
int ls_bpf_link_detach(int link_fd);
/* Fills prog_ids with up to *count programs at the hook, in the order in which they run, and *count with how many. */
int ls_bpf_prog_query(__u32 ifindex, __u32 attach_type, __u32 *prog_ids, __u32 *count);
int ls_bpf_prog_get_fd_by_id(__u32 id);

struct ls_link_info {
	__u32 type; /* enum bpf_link_type */
	__u32 id;
	__u32 prog_id;
	__u32 ifindex;     /* of tcx, XDP and netkit links; 0 once the device is gone or the link is detached */
	__u32 attach_type; /* of tcx and netkit links */
};
int ls_bpf_link_info(int fd, struct ls_link_info *info);

/* netns.c. Where a function works inside another namespace it does so in a thread of its own, so the caller's
 * namespace never changes. *step names the system call that failed. */
int ls_netns_create(const char *path, const char **step);
int ls_netns_unmount(const char *path);
int ls_netns_prepare_directory(const char *path, const char **step);
int ls_netns_check(const char *path); /* 1: a network namespace; 0: something else */
int ls_netns_open_socket(const char *path, int family, int type, int protocol, const char **step);
int ls_netns_enter(const char *path, const char **step);
int ls_netns_unshare(void);

/* probe.c: sends `size` bytes from socket a to b, and back if they are to be answered, `count` times, and writes how long
 * each took. Both are blocking and connected to each other. -EAGAIN: nothing arrived in time, as SO_RCVTIMEO has it. */
int ls_probe_messages(int a, int b, __u32 size, __u32 count, int is_answered, __u64 *ns);

/* counters.c: adds up the CPUs of `count` values of a per-CPU map, modulo 2**64 as the counters themselves are. */
void ls_counters_total(const struct ls_counters *values, __u32 count, __u32 cpus, struct ls_counters *totals);

/* latency.c: many histograms, without the buckets at both ends that are not in use: of most some twenty are. */
struct ls_histogram {
	__u64 total_ns;
	__u32 first; /* which bucket of struct ls_latency the first count is of */
	__u32 used;  /* how many buckets there are counts of; the first and the last are not 0 */
	__u64 count[];
};
struct ls_histograms {
	__u32 owners;
	__u32 kinds;
	struct ls_histogram **held; /* [owner * kinds + kind]; NULL: there is none */
};
/* What ls_histograms_hold needs as `room` for the values. */
__u64 ls_histograms_size(const struct ls_latency *values, __u32 count);
/* Packs the values into `room`, which is to last as long as `into`, for the slots of their keys as owners; leaves out what
 * `into` has no place for. */
void ls_histograms_hold(struct ls_histograms *into, const struct ls_latency_key *keys, const struct ls_latency *values,
			__u32 count, void *room);
/* NULL: there is none. */
const struct ls_histogram *ls_histogram_of(const struct ls_histograms *of, __u32 owner, __u32 kind);
/* Adds up those of a kind of `count` owners, and returns how many there were. */
__u32 ls_histograms_add(struct ls_latency *sum, const struct ls_histograms *of, __u32 kind, const __u32 *owners,
			__u32 count);

/* links.c */
struct ls_link {
	__u64 rx_packets;
	__u64 rx_bytes;
	__u64 tx_packets;
	__u64 tx_bytes;
	__u32 ifindex;
	__u32 master; /* ifindex of the bridge or other upper device; 0: none */
	__u32 peer;   /* IFLA_LINK: the other end of a veth, in its namespace, or the lower device; 0: none */
	__u32 flags;  /* IFF_* */
	__u32 mtu;
	__u32 operstate; /* IF_OPER_* */
	__u32 mac_len;
	__u8 mac[32];
	char ifname[16];
	char kind[32];
	char alias[256];
};
/* Fills *links with a malloc'ed array, which ls_links_free frees, and returns the count. sock < 0: a socket of the
 * calling thread's namespace is opened for the call. */
int ls_links_dump(int sock, struct ls_link **links);
void ls_links_free(struct ls_link *links);

/* exposition.c */
#define LS_HISTOGRAM_BOUNDS 48
#define LS_HISTOGRAM_BYTES 4096 /* more than any histogram's numbers take in either format */
struct ls_family {
	/* The texts before and after the labels of each line, one behind the other, each with its NUL. */
	const char *around;
	__u32 around_size;
	/* Of counters. */
	int is_sparse; /* those that are 0 are left out */
	/* Of histograms. */
	int first; /* classic bounds are 2**first, 2**(first + step) … seconds */
	int step;
	__u32 bounds; /* how many; at most LS_HISTOGRAM_BOUNDS */
	const double *bound; /* those and infinity, as protobuf has them */
	int schema;          /* of the native buckets: 2**schema of them to a power of two */
	double zero_threshold;
};
/* Labels one behind the other, `ends` being where each one's end there, and the number of the owner or kind that has
 * them. */
struct ls_labelled {
	const char *labels;
	const __u32 *ends;
	const __u32 *numbers;
	__u32 count;
};
/* Writes what there is of the kinds of each owner, from series number *at on, of owners->count * kinds->count, as many as
 * surely fit into `size` bytes. Moves *at on and returns how many bytes were written. */
__u32 ls_histograms_text(char *out, __u32 size, const struct ls_family *family, const struct ls_histograms *of,
			 const struct ls_labelled *owners, const struct ls_labelled *kinds, __u32 *at);
/* The same as messages io.prometheus.client.Metric, as they lie in a MetricFamily. */
__u32 ls_histograms_protobuf(char *out, __u32 size, const struct ls_family *family, const struct ls_histograms *of,
			     const struct ls_labelled *owners, const struct ls_labelled *kinds, __u32 *at);
/* The same for counters: values[owner * kinds->count + kind], by their places among the labelled. */
__u32 ls_counters_text(char *out, __u32 size, const struct ls_family *family, const __u64 *values,
		       const struct ls_labelled *owners, const struct ls_labelled *kinds, __u32 *at);
__u32 ls_counters_protobuf(char *out, __u32 size, const struct ls_family *family, const __u64 *values,
			   const struct ls_labelled *owners, const struct ls_labelled *kinds, __u32 *at);

#endif
