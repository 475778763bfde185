/*
 * settings.h
 *		The settings, as every part of the library reads them.
 *
 * token/pepper.h has the variable of pepper_file, base/principal.h that of
 * principal.
 */
#ifndef SETTINGS_H
#define SETTINGS_H

#include "utils/timestamp.h"

/* A tenant's name, in characters: the table's CHECK has the same bound. */
#define SETTINGS_TENANT_MAX_CHARS 200
/* An end user's name, in characters. */
#define SETTINGS_END_USER_MAX_CHARS 200

/* Strings; never NULL once the library is loaded. */
extern char *settings_default_environment;
extern char *settings_end_user;	/* empty: none */
extern char *settings_primary_conninfo; /* empty: none */
extern char *settings_required_environment; /* empty: none */
extern char *settings_tenant;
extern char *settings_token_prefix;

/* An interval, as text; settings_interval() parses it. */
extern char *settings_max_lifetime;

extern int	settings_cache_size;	/* keys */
extern int	settings_max_tracked_keys;
extern bool settings_notify;
extern bool settings_redact_logs;
extern bool settings_require_end_user;
extern bool settings_track_usage;
extern int	settings_usage_flush_interval;	/* milliseconds */
extern int	settings_usage_resolution;	/* seconds */

extern void settings_init(void);
extern bool settings_end_user_ok(const char *value);
extern void settings_interval(const char *value, Interval *result);

#endif
