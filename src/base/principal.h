/*
 * principal.h
 *		The setting that names the key this transaction authenticated as.
 */
#ifndef PRINCIPAL_H
#define PRINCIPAL_H

#include "utils/guc.h"

/*
 * The setting rk_apikeys.principal: a key id; empty: no principal; another text:
 * authenticate() has taken the principal away.
 */
extern char *principal_setting;

extern bool principal_check(char **newval, void **extra, GucSource source);
extern void principal_set(const char *key_id);
extern void principal_take_away(void);
extern bool principal_is_set(void);
extern const char *principal_key_id(void);
extern void principal_refuse(void);

#endif
