/*
 * rk_apikeys.h
 *		The settings, as every part of the library reads them.
 */
#ifndef RK_APIKEYS_H
#define RK_APIKEYS_H

#include "utils/timestamp.h"

/* Strings; never NULL once the library is loaded. */
extern char *rk_apikeys_default_environment;
extern char *rk_apikeys_primary_conninfo;	/* '': there is none */
extern char *rk_apikeys_tenant;
extern char *rk_apikeys_token_prefix;

/* Intervals, as text; rk_apikeys_parse_interval gives them parsed. */
extern char *rk_apikeys_expiring_window;
extern char *rk_apikeys_max_lifetime;
extern char *rk_apikeys_stale_after;

extern int	rk_apikeys_cache_size;	/* keys */
extern int	rk_apikeys_max_tracked_keys;
extern bool rk_apikeys_notify;
extern bool rk_apikeys_redact_logs;
extern bool rk_apikeys_track_usage;
extern int	rk_apikeys_usage_flush_interval;	/* milliseconds */
extern int	rk_apikeys_usage_resolution;	/* seconds */

extern void rk_apikeys_parse_interval(const char *value, Interval *result);

#endif
