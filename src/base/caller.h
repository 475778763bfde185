/*
 * caller.h
 *		Who is calling, and the few writes made with the owner's rights.
 */
#ifndef CALLER_H
#define CALLER_H

extern Oid	caller_role(void);
extern char *caller_application_name(void);
extern const char *caller_end_user(void);
extern bool caller_owns(Oid table);
extern bool caller_borrows(void);

typedef void (*OwnerWork) (void *arg);

extern void caller_run_as_owner(Oid table, OwnerWork work, void *arg);

#endif
